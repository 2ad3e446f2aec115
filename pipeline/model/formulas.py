"""Formulas over a model's config: the order of its heads, the parts of it, parameters, FLOPs and saved activations.

Model FLOPs are those of forward and backward, counted as in PaLM (arXiv 2204.02311, appendix B): 6 for each weight that
multiplies a token (the embedding does not; the unembedding does, once per head), plus 12 x heads x head_dim x seq_len
for the attention of each layer, which counts every pair of positions, although the causal mask needs only half of them.
PaLM, torchtitan and nanoGPT count this way; Megatron-LM counts half of the pairs. Norms, rotations and the softmax are
not counted. Hardware FLOPs also count what activation checkpointing computes again; model FLOPs do not. Nothing here
imports torch.
"""

from dataclasses import dataclass

from pipeline.config.model import ModelConfig

MIN_CHUNK_POSITIONS = 256  # with fewer, matrix products are too thin to be fast


def head_inputs(config: ModelConfig, n_heads: int | None = None) -> dict[int, int | None]:
    """Return the heads in the order of computation, each with the head whose output it reads (None: the trunk's).

    The order is that of parallel, causal or anticausal heads (paper, appendix B). With `n_heads`, the result has only
    the heads that are needed for the first `n_heads` of them.
    """
    n_all = config.n_future_tokens
    heads = range(n_all if n_heads is None else n_heads)
    if config.head_order == "causal":
        return {head: head - 1 if head else None for head in heads}
    if config.head_order == "anticausal":
        return {head: head + 1 if head + 1 < n_all else None for head in reversed(range(n_all))}
    return dict.fromkeys(heads)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of a model that one process holds."""

    embedding: bool
    """Whether it has the token embedding."""
    trunk_layers: range
    """Indices of its trunk layers."""
    heads: tuple[int, ...]
    """Indices of its heads: head i predicts the token i + 1 ahead."""
    unembedding: bool
    """Whether it has the norm and the unembedding."""


def whole(config: ModelConfig) -> Share:
    """Return the share that is the whole model."""
    return Share(
        embedding=True, trunk_layers=range(config.n_trunk_layers), heads=tuple(head_inputs(config)), unembedding=True
    )


def layer_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of one transformer layer, including its two norms."""
    attention = 2 * config.dim * config.head_dim * (config.n_heads + config.kv_heads)
    return attention + 3 * config.dim * config.ffn_dim + 2 * config.dim


def head_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of one head, without norm and unembedding."""
    return layer_parameters(config) if config.head_type == "transformer" else config.dim**2


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters; the paper's models have the same for every n (heads replace trunk layers)."""
    layers = config.n_trunk_layers * layer_parameters(config) + config.n_future_tokens * head_parameters(config)
    return (1 + config.n_unembeddings) * config.vocab_size * config.dim + layers + config.dim


def attention_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return the FLOPs of one layer's attention scores and of their products with the values, forward and backward."""
    return 12 * config.n_heads * config.head_dim * seq_len


def layer_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return the FLOPs of one transformer layer, forward and backward."""
    matrices = layer_parameters(config) - 2 * config.dim
    return 6 * matrices + attention_flops_per_token(config, seq_len=seq_len)


def head_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return the FLOPs of one head, forward and backward, without the unembedding."""
    if config.head_type == "linear":
        return 6 * config.dim**2
    return layer_flops_per_token(config, seq_len=seq_len)


def unembedding_flops_per_token(config: ModelConfig) -> int:
    """Return the FLOPs of one head's unembedding, forward and backward."""
    return 6 * config.vocab_size * config.dim


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Model FLOPs per token by part, forward and backward."""

    trunk: int
    """All trunk layers."""
    heads: int
    """All n heads, without the unembedding."""
    unembedding: int
    """The unembedding, once for each head."""
    attention: int
    """Attention scores and their products with the values; included in `trunk` and `heads`."""

    @property
    def total(self) -> int:
        """FLOPs of the whole model."""
        return self.trunk + self.heads + self.unembedding


def training_flops(config: ModelConfig, *, seq_len: int) -> Flops:
    """Return the model FLOPs per token, by part."""
    n_heads, n_attentions = config.n_future_tokens, config.n_transformer_layers
    return Flops(
        trunk=config.n_trunk_layers * layer_flops_per_token(config, seq_len=seq_len),
        heads=n_heads * head_flops_per_token(config, seq_len=seq_len),
        unembedding=n_heads * unembedding_flops_per_token(config),
        attention=n_attentions * attention_flops_per_token(config, seq_len=seq_len),
    )


def training_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return the model FLOPs per token, from which model FLOPs utilisation (MFU) is computed."""
    return training_flops(config, seq_len=seq_len).total


def recomputed_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return the FLOPs that activation checkpointing adds; model FLOPs plus these give hardware utilisation (HFU).

    It recomputes the forward of each trunk layer, and of heads that read each other. Heads that read the trunk have no
    saved activations to begin with. Torch stops recomputing when it has all that the backward needs, which is before a
    layer's last matrix product.
    """
    is_chained = config.head_order != "parallel" and config.head_type == "transformer"
    n_layers = config.n_trunk_layers + (config.n_future_tokens if is_chained else 0)
    forward = layer_flops_per_token(config, seq_len=seq_len) // 3
    return n_layers * (forward - 2 * config.dim * config.ffn_dim)


def saved_elements_per_token(config: ModelConfig) -> int:
    """Return the size of the activations that one bf16 transformer layer saves for the backward, in bf16 elements.

    Each of the two norms saves its input in fp32 and its output twice (before and after the gain); attention saves its
    queries, keys, values and output; the feed-forward saves its two projections, the gate and their product.
    """
    keys_and_values = 2 * config.kv_heads * config.head_dim
    return 2 * 4 * config.dim + 2 * config.dim + keys_and_values + 4 * config.ffn_dim


def chunk_positions(n_positions: int, *, dim: int, vocab_size: int) -> int:
    """Return the number of positions whose logits the loss holds at a time.

    A chunk's logits are about as large as the micro batch's hidden state (`n_positions` x `dim`).
    """
    return max(MIN_CHUNK_POSITIONS, n_positions * dim // vocab_size)
