"""policy_loss against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.policy_loss import CASES


def bench_policy_loss(time_case, name, contender):
    time_case(CASES, name, contender)
