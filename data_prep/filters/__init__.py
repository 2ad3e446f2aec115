"""The choice of documents that stay: quality rules, licences, exact duplicates, and text of benchmarks."""
