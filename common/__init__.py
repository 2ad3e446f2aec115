"""What both rooms need and neither owns: the command-line contract, whole-file writes, tokenizers, folders in S3.

`data_prep` and `pipeline` never import each other; what they would otherwise each write again
lives here. Nothing in this package imports torch, so that data workers start fast.
"""
