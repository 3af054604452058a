"""exit_confidence against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.exit_confidence import CASES


def bench_exit_confidence(time_case, name, contender):
    time_case(CASES, name, contender)
