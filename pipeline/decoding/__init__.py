"""Decoding: tokens from an exported model, and texts from tokens.

Reading order: `sampling` (how tokens are drawn, which drafts stand), `cache`, `blockwise` (the loop), `decode` (the
model, and speculation with its heads), `layer_skip` (with its early layers, to compare); then `prompts`, `text`,
`memory`, `session` (a loaded model that continues prompts) and `interactive`.
"""
