"""Experiments: the demo, comparisons, and TOML experiments."""
