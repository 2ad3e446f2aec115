"""The steps from documents to windows of tokens: encoding, fill-in-the-middle, shuffling and packing."""
