"""Fuzzers: each module fuzz_*.py has `run(seconds, seed)`, and `python -m tests.fuzz` runs them."""
