"""``python -m benchmarks.gpu``: tests and measures this package on a GPU, in minutes (``docs/gpu.md``)."""
