"""``python -m benchmarks.gpu``: what a GPU says of this package, in minutes (``docs/gpu.md``)."""
