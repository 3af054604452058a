"""The early-exit engine against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.engine import CASES


def bench_engine(time_case, name, contender):
    time_case(CASES, name, contender)
