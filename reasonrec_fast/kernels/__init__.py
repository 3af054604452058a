"""Triton kernels; one file an operator, loaded where a GPU is used."""
