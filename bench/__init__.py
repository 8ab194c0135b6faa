"""Benchmarks: `python -m bench` prints the tables of docs/benchmarks.md. Never part of the tests."""
