"""Benchmarks of bicot against the usual alternatives and the hardware's limit.

    python -m benchmarks NAME [--json FILE] [--device cpu|cuda] [--scale tiny|100m|1b|7b]

Baselines run in the same process, alternating with ours; figures are medians. docs/performance.md has the results.
"""
