"""Shards on disk: writing one part, the folder they make together, and reading them back."""
