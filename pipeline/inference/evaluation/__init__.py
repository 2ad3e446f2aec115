"""pass@k: problems, samples of them, and their execution in a sandbox."""
