"""route against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.route import CASES


def bench_route(time_case, name, contender):
    time_case(CASES, name, contender)
