"""Generation over a shared prefix beside transformers, under pytest-benchmark."""

from reasonrec_fast.benchmarking.generate import CASES


def bench_generate(time_case, name, contender):
    time_case(CASES, name, contender)
