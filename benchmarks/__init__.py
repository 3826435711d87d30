"""Measurements; each prints its figures and can write them, dated, to ``benchmarks/results/``."""
