"""Near-duplicate detection: within one process, and by datatrove's stages for larger corpora."""
