"""Benchmarks: one file, one question."""
