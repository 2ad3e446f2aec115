"""The multi-token model: layers, heads and the head-sequential loss, and what they cost by formula."""
