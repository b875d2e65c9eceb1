"""Micro-benchmarks: one stage at a time, so that a regression can be found. Run as contenders are."""
