"""The cost of data preparation: `python -m benchmarks.data_prep` compares our ways with those of other projects."""
