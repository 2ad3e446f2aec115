"""Hugging Face's format: the folder, its config.json, the names of the weights, and the tokenizer's files."""
