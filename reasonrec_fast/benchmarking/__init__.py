"""Benchmarks of operators and models against their peers: contenders take turns on the same input, medians count."""
