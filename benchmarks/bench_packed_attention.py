"""packed_attention against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.packed_attention import CASES


def bench_packed_attention(time_case, name, contender):
    time_case(CASES, name, contender)
