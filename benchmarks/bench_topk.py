"""topk against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.topk import CASES


def bench_topk(time_case, name, contender):
    time_case(CASES, name, contender)
