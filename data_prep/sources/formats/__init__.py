"""The formats of input files: how each is recognised, opened, decompressed and read in bounded memory."""
