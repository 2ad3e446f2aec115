"""What data preparation costs: `python -m benchmarks.data_prep` measures this project's ways beside others'."""
