"""Autoregressive and self-speculative decoding of exported models."""
