"""A SentencePiece model as other tokenizers: its content as data, and gigatoken, which gives the same ids faster."""
