"""Which documents stay: quality rules, exact duplicates, and documents that contain benchmark text."""
