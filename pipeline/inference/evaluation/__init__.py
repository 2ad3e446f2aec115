"""pass@k: programming problems, completions of them, and their execution in a sandbox."""
