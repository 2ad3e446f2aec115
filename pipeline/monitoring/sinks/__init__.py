"""The sinks of a run's scalars and texts: console, TensorBoard, metrics.jsonl, and Weights & Biases."""
