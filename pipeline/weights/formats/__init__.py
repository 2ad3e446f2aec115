"""Weights for other tools, and back: Meta's format, Hugging Face's, and training checkpoints."""
