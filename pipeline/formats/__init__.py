"""Weights for other tools, and back: Meta's format, Hugging Face's, and training checkpoints.

Reading order: `source` (weights read one at a time, and what is made of them), then the formats (`meta`; `llama` and
`huggingface`; `training`), `detect` (which format a folder has), and what goes along with weights: `tokenizer_json`
and `model_card`. Nothing here imports torch before weights are touched.
"""
