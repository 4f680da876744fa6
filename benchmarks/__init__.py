"""What bicot reaches, beside what people would otherwise run and beside the hardware's limit.

    python -m benchmarks NAME [--json FILE] [--device cpu|cuda] [--scale tiny|100m|1b|7b]

Baselines run in the same process, alternating with ours; figures are medians. docs/performance.md has what was found.
"""
