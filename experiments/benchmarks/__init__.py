"""Benchmarks, one file for each question; run one with `python -m experiments bench NAME`."""
