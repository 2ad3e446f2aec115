"""Code that data_prep and pipeline share, of which only the import of streaming needs torch."""
