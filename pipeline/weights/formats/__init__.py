"""The formats that weights are read from and written to: Meta's, Hugging Face's, and training checkpoints."""
