"""What follows from a model's config without building it: its parts, their order, and what they cost by formula.

Model FLOPs are those of forward and backward, counted PaLM's way (arXiv 2204.02311, appendix B): 6 per weight that
multiplies each token (the embedding does not; the unembedding does, once per head), plus 12 x heads x head_dim x
seq_len for each layer's attention: all positions with all, although the causal mask needs only half of them. PaLM,
torchtitan and nanoGPT count so; Megatron-LM counts half of it. Norms, rotations and the softmax are not counted, and
model FLOPs do not count what activation checkpointing computes twice; hardware FLOPs do. Nothing here imports torch.
"""

from dataclasses import dataclass

from pipeline.config.model import ModelConfig

MIN_CHUNK_POSITIONS = 256  # with fewer, matrix products are too thin to be fast


def head_inputs(config: ModelConfig, n_heads: int | None = None) -> dict[int, int | None]:
    """Return each head, in the order of computing, and the head whose output it reads (None: the trunk's).

    With `n_heads`, only what the first of them need (paper, appendix B: parallel, causal, anticausal heads).
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
    """The part of a model that one process holds.

    embedding: whether the token embedding is in it.
    trunk_layers, heads: indices of the layers; a head's index is its place among the predictions.
    unembedding: whether norm and unembedding are in it.
    """

    embedding: bool
    trunk_layers: range
    heads: tuple[int, ...]
    unembedding: bool


def whole(config: ModelConfig) -> Share:
    """Return the share that is all of the model."""
    return Share(
        embedding=True, trunk_layers=range(config.n_trunk_layers), heads=tuple(head_inputs(config)), unembedding=True
    )


def layer_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of one transformer layer, its two norms included."""
    attention = 2 * config.dim * config.head_dim * (config.n_heads + config.kv_heads)
    return attention + 3 * config.dim * config.ffn_dim + 2 * config.dim


def head_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of one head, without norm and unembedding."""
    return layer_parameters(config) if config.head_type == "transformer" else config.dim**2


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters; with the paper's heads the same for every n (heads replace trunk layers)."""
    layers = config.n_trunk_layers * layer_parameters(config) + config.n_future_tokens * head_parameters(config)
    return (1 + config.n_unembeddings) * config.vocab_size * config.dim + layers + config.dim


def attention_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return the FLOPs of one layer's scores and their products with the values, forward and backward."""
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
    """Model FLOPs per token by part, forward and backward.

    trunk: all its layers.  heads: all n, without unembedding.  unembedding: once for each head.
    attention: scores and their products with the values; a part of trunk and heads, not a fourth one beside them.
    """

    trunk: int
    heads: int
    unembedding: int
    attention: int

    @property
    def total(self) -> int:
        """All of the model's."""
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
    """Return the model FLOPs per token: what model FLOPs utilisation (MFU) is computed from."""
    return training_flops(config, seq_len=seq_len).total


def recomputed_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return what activation checkpointing adds to the model FLOPs; both together give hardware utilisation (HFU).

    It computes the forward of each trunk layer again, and of heads that read each other; heads that read the trunk are
    not kept in the first place. Torch stops as soon as it has what the backward needs, before a layer's last product.
    """
    is_chained = config.head_order != "parallel" and config.head_type == "transformer"
    n_layers = config.n_trunk_layers + (config.n_future_tokens if is_chained else 0)
    forward = layer_flops_per_token(config, seq_len=seq_len) // 3
    return n_layers * (forward - 2 * config.dim * config.ffn_dim)


def saved_elements_per_token(config: ModelConfig) -> int:
    """Return what one bf16 transformer layer keeps per token from forward to backward, in bf16 elements.

    Each of the two norms keeps its input in fp32 and its output twice (before and after the gain); attention its
    queries, keys, values and output; the feed-forward its two projections, the gate and their product.
    """
    keys_and_values = 2 * config.kv_heads * config.head_dim
    return 2 * 4 * config.dim + 2 * config.dim + keys_and_values + 4 * config.ffn_dim


def chunk_positions(n_positions: int, *, dim: int, vocab_size: int) -> int:
    """Return the number of positions whose logits the loss holds at a time.

    A chunk's logits are about as large as the micro batch's hidden state (`n_positions` x `dim`).
    """
    return max(MIN_CHUNK_POSITIONS, n_positions * dim // vocab_size)
