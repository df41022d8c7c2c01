"""Benchmarks: each prints a table and keeps what it measured under results/."""
