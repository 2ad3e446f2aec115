"""Use of trained models: decoding, and evaluation by pass@k."""
