"""What trained models do: decoding, and evaluation by pass@k."""
