"""Which documents stay: quality rules, licences, exact duplicates, and text of benchmarks."""
