"""Weights and optimizer state on disk: training checkpoints, and the formats of other tools."""
