"""The multi-token model: layers, heads, the head-sequential loss, and formulas for parameters and FLOPs."""
