"""Training checkpoints: the whole state of a run, sealed by a manifest and loaded into any layout."""
