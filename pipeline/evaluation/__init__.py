"""pass@k: problems, samples of them, and their execution.

Reading order: `problems`, `completions` (samples in batches), `sample_log` (what survives a kill), `sandbox`, with
`sandbox_init` and `sandbox_program` inside it, and `pass_at_k`.
"""
