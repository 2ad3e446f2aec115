"""Hugging Face data sets: their files, whether these lie inside, and reading through the `datasets` library."""
