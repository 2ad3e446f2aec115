"""Documents from source trees, record files, Parquet, Hugging Face data sets and standard input."""
