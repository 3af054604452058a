"""Timing of operators and models beside their peers: contenders take turns on the same input, medians are compared."""
