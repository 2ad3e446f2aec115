"""Pretraining of multi-token-prediction language models (Gloeckle et al. 2024, arXiv 2404.19737)."""
