"""aggregate against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.aggregate import CASES


def bench_aggregate(time_case, name, contender):
    time_case(CASES, name, contender)
