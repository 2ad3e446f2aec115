"""Memory of the model's own code on one rank, in bytes, for one micro batch: what it keeps and what it briefly needs.

    kept        from each layer's forward to its backward: everything that autograd saves or, with activation
                checkpointing, only the layer's input
    loss        while the head-sequential op (loss.py) computes its last head: that head's layer, the logits of a chunk,
                and the finished gradients of the earlier heads, of z and of the unembedding
    head        the same op a moment later: no logits, but that head's own gradients
    backward    what a layer's backward needs beside what was kept: gradients of its hidden states

Attention never holds its T x T scores: torch's kernels are flash kernels, on the CPU in fp32 and bf16 and on CUDA too.
The one exception is fp32 with grouped queries, which CUDA's fused kernels do not support.
"""

from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.model.formulas import Share, chunk_positions, head_parameters, saved_elements_per_token

LOGITS_BYTES = 12  # per logit of a chunk: log-probabilities, their gradient, and that of the logits; all fp32
LAST_LOGITS_BYTES = 4  # of these, the part that remains while the unembedding's gradient is computed


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one micro batch on one rank."""

    kept: int  # from the forward to the backward
    recomputed: int  # activations of one layer, while its backward runs after recomputation
    loss: int  # activations inside the loss op
    logits: int  # of one chunk of one head, with their gradients
    loss_gradients: int  # of weights, inside the loss op while it holds the last head's logits
    stored_gradients: int  # of all heads, norm and unembedding; the loss op holds them until the backward
    last_gradients: int  # what the last head's own backward briefly adds to them
    backward: int  # temporaries of one layer's backward
    boundary: int  # hidden states that pipeline stages pass on


def activations(config: Config, share: Share, *, weight_bytes: int, device: str, boundary_states: int) -> Activations:
    """Return the memory that one micro batch takes on a rank that holds `share`.

    Args:
        config: the run's config.
        share: the rank's part of the model.
        weight_bytes: 2 for bf16, 4 for fp32.
        device: "cpu" or "cuda".
        boundary_states: hidden states that the previous stage passes on (z, and one for each earlier head); 0 on the
            first stage.
    """
    model, parallel = config.model, config.parallel
    positions = config.train.micro_batch_size * config.data.seq_len // parallel.sequence_parallel_size
    hidden = positions * model.dim * weight_bytes
    layer = _layer_bytes(config, weight_bytes=weight_bytes, device=device)
    in_op = model.head_order == "parallel" and share.unembedding
    heads_here = len(share.heads)
    head_layer = layer if model.head_type == "transformer" else hidden
    kept_as_layers = len(share.trunk_layers) + (0 if in_op else heads_here)
    per_layer = hidden if config.train.activation_checkpointing else layer
    recomputed = layer if config.train.activation_checkpointing and kept_as_layers else 0
    ffn = model.ffn_dim // parallel.tensor_parallel_size
    backward = positions * weight_bytes * 2 * (ffn + model.dim)
    if not share.unembedding:
        return Activations(
            kept=per_layer * kept_as_layers, recomputed=recomputed, loss=0, logits=0, loss_gradients=0,
            stored_gradients=0, last_gradients=0, backward=backward,
            boundary=hidden * (max(1, boundary_states) + heads_here),
        )  # fmt: skip
    matrix = model.vocab_size * model.dim * weight_bytes
    head = head_parameters(model) * weight_bytes // parallel.tensor_parallel_size
    heads_in_op = heads_here if in_op else 0
    norm = (4 if weight_bytes == 2 else 3) * hidden  # for bf16, its input is kept in fp32
    chunk = min(positions, chunk_positions(positions, dim=model.dim, vocab_size=model.vocab_size))
    summed = (model.n_future_tokens > 1) + (chunk < positions)  # unembedding gradients of earlier heads and chunks
    chunk_logits = chunk * model.vocab_size
    beside_logits = max(LOGITS_BYTES * chunk_logits, LAST_LOGITS_BYTES * chunk_logits + matrix)
    return Activations(
        kept=per_layer * kept_as_layers,
        recomputed=recomputed,
        loss=norm + 2 * max(1, boundary_states) * hidden + (head_layer if heads_in_op else 0),
        logits=beside_logits,
        loss_gradients=max(0, heads_in_op - 1) * head + summed * matrix,
        stored_gradients=heads_in_op * head + model.n_unembeddings * matrix,
        last_gradients=matrix if model.n_future_tokens > 1 else 0,
        backward=backward,
        boundary=hidden * boundary_states,
    )


def _layer_bytes(config: Config, *, weight_bytes: int, device: str) -> int:
    """Return the bytes that one layer keeps of a micro batch without activation checkpointing."""
    model, parallel = config.model, config.parallel
    positions = config.train.micro_batch_size * config.data.seq_len // parallel.sequence_parallel_size
    elements = saved_elements_per_token(model)  # in units of bf16, so that a norm's fp32 input counts twice
    if weight_bytes == 4:
        elements -= 2 * model.dim
    whole = 8 * model.dim if weight_bytes == 2 else 6 * model.dim  # the norms, which tensor parallelism does not divide
    elements = whole + (elements - whole) // parallel.tensor_parallel_size
    row_sums = 4 * model.n_heads // parallel.tensor_parallel_size  # attention's log-sum-exp, fp32
    per_layer = positions * (weight_bytes * elements + row_sums)
    if device == "cuda" and weight_bytes == 4 and model.kv_heads != model.n_heads:
        scores = config.train.micro_batch_size * model.n_heads * config.data.seq_len**2 * weight_bytes
        per_layer += 2 * scores // (parallel.tensor_parallel_size * parallel.sequence_parallel_size)
    return per_layer
