"""Everything people see of a run: the console, TensorBoard, metrics, previews, step times, profiles and reports."""
