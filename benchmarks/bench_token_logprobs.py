"""token_logprobs against its peers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.token_logprobs import CASES


def bench_token_logprobs(time_case, name, contender):
    time_case(CASES, name, contender)
