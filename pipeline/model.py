"""The multi-token model: a shared trunk, n heads of one transformer layer, one norm, one unembedding.

    tokens_BT -> Trunk -> z_BTD -> head i (one layer) -> norm -> unembedding -> logits of token t + 1 + i

Head 0 is the next-token head. Every head reads the same z; norm and unembedding are shared; embedding
and unembedding are not tied (paper §2, footnote 1). `n_layers` counts the heads, so that models with
different n have the same number of parameters. The block is Llama 2's: RMSNorm, rotary positions on
interleaved pairs, SwiGLU, no biases. Architecture only: distribution is applied from outside.

Shape suffixes: B sequences, T positions, S cached positions, D model width, H query heads,
K key/value heads, E head width, N prediction heads, V vocabulary.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config import ModelConfig
from pipeline.loss import at_least_fp32, cross_entropy, sum_of_pieces


class KeyValueCache(Protocol):
    """What attention asks of a decoding cache: store new keys and values, return all visible ones."""

    def update(self, key_BKTE: Tensor, value_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the block's keys and values; return those of all cached positions, (B, K, S, E) each."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32 for low-precision inputs (as Llama does)."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        normed = F.rms_norm(at_least_fp32(hidden_BTD), (hidden_BTD.shape[-1],), eps=self.eps)
        return normed.to(hidden_BTD.dtype) * self.weight


def rotary_factors(positions: Tensor, *, head_dim: int, theta: float) -> Tensor:
    """Return the rotary embedding's e^(i angle), complex64, shape `positions.shape + (head_dim / 2,)`.

    Computed where it is used instead of kept as a buffer: a buffer would be cast with the model to bf16,
    which garbles the angles of late positions.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.unsqueeze(-1).float() * theta**-exponents
    return torch.complex(angles.cos(), angles.sin())


def rotate(x_BTHE: Tensor, rotary: Tensor) -> Tensor:
    """Rotate adjacent pairs of the last dimension (Meta's layout, not Hugging Face's halves) in fp32.

    One complex product: bit for bit what four real ones give, and on a CPU 2.5 (1 token) to 9 times (256) as fast.
    """
    pairs = torch.view_as_complex(at_least_fp32(x_BTHE).unflatten(-1, (-1, 2)))
    rotated = torch.view_as_real(pairs * rotary.unsqueeze(-2))  # one axis for the attention heads
    return rotated.flatten(-2).to(x_BTHE.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and optional grouped queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.is_grouped = config.kv_heads != config.n_heads
        self.wq = nn.Linear(config.dim, config.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * self.head_dim, config.dim, bias=False)

    def forward(
        self,
        hidden_BTD: Tensor,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend causally, or, with a cache, to the cached positions that `mask` (B, 1, T, S) allows.

        The mask is boolean, or added to the scores. Without one a single query attends to everything cached.
        """
        query, key, value = (
            project(hidden_BTD).unflatten(-1, (-1, self.head_dim)) for project in (self.wq, self.wk, self.wv)
        )
        query, key = rotate(query, rotary), rotate(key, rotary)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value)
        is_causal = mask is None and query.shape[2] > 1
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=self.is_grouped
        )
        return self.wo(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(hidden_BTD)) * self.w3(hidden_BTD))


class TransformerBlock(nn.Module):
    """One pre-norm layer; the trunk is a stack of these, and so is each head, one deep."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)

    def forward(
        self,
        hidden_BTD: Tensor,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        hidden_BTD = hidden_BTD + self.attention(self.attention_norm(hidden_BTD), rotary, cache, mask)
        return hidden_BTD + self.feed_forward(self.ffn_norm(hidden_BTD))


class Trunk(nn.Module):
    """Token embedding and the layers that all heads share."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_trunk_layers))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return z (B, T, D) for token ids (B, T), int64."""
        hidden_BTD = self.tok_embeddings(tokens_BT)
        rotary = training_rotary(tokens_BT.shape[1], self.config, device=tokens_BT.device)
        for layer in self.layers:
            if self.activation_checkpointing:
                hidden_BTD = checkpoint(layer, hidden_BTD, rotary, use_reentrant=False)
            else:
                hidden_BTD = layer(hidden_BTD, rotary)
        return hidden_BTD


class Heads(nn.Module):
    """The n prediction heads with their shared norm and unembedding, and their loss.

    One module, because the loss runs all of them inside one op: under ZeRO-3 it is gathered as a whole.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_future_tokens))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, z_BTD: Tensor, targets_BTN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss () and the per-head losses (N,), nats per token, fp32.

        `targets_BTN[b, t, i]` is the id of token t + 1 + i.
        """
        rotary = training_rotary(z_BTD.shape[1], self.config, device=z_BTD.device)

        def head_loss(head: int, hidden_BTD: Tensor) -> Tensor:
            normed_BTD = self.norm(self.layers[head](hidden_BTD, rotary))
            return cross_entropy(normed_BTD, self.output.weight, targets_BTN[..., head])

        return sum_of_pieces(head_loss, z_BTD, n_pieces=self.config.n_future_tokens, parameters=list(self.parameters()))


class MultiTokenModel(nn.Module):
    """Trunk and heads. Called with tokens and targets it returns the loss; decoding uses the parts."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config, activation_checkpointing=activation_checkpointing)
        self.heads = Heads(config)

    def forward(self, tokens_BT: Tensor, targets_BTN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss () and the per-head losses (N,); see `Heads.forward`."""
        return self.heads(self.trunk(tokens_BT), targets_BTN)


def training_rotary(seq_len: int, config: ModelConfig, *, device: torch.device) -> Tensor:
    """Rotary factors of positions 0 .. seq_len - 1."""
    positions = torch.arange(seq_len, device=device)
    return rotary_factors(positions, head_dim=config.head_dim, theta=config.rope_theta)


@torch.no_grad()
def initialise(model: MultiTokenModel, *, seed: int) -> None:
    """Fill the weights: normal with std 1/sqrt(dim), cut at 3 std; residual outputs scaled down with depth.

    The paper does not print its initialisation. This is that of facebookresearch/lingua, the same lab's
    pretraining code (`BaseTransformer.reset_parameters`: std 1/sqrt(fan-in), truncated at 3 std), with its
    "current depth" factor: the matrices that write into the residual stream (wo, w2) are divided by
    sqrt(2 (depth + 1)), as in GPT-2. All heads sit at the same depth, just above the trunk.
    """
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)

    def fill(weight: Tensor, *, fan_in: int, scale: float = 1.0) -> None:
        std = scale / math.sqrt(fan_in)
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)

    config = model.config
    fill(model.trunk.tok_embeddings.weight, fan_in=config.dim)
    layers = [*enumerate(model.trunk.layers), *((config.n_trunk_layers, head) for head in model.heads.layers)]
    for depth, layer in layers:
        for name, weight in layer.named_parameters():
            if weight.dim() == 2:
                residual_output = name.endswith(("wo.weight", "w2.weight"))
                scale = 1 / math.sqrt(2 * (depth + 1)) if residual_output else 1.0
                fill(weight, fan_in=weight.shape[1], scale=scale)
    fill(model.heads.output.weight, fan_in=config.dim)


def parameter_count(config: ModelConfig) -> int:
    """Return the number of parameters; the same for every n (heads replace trunk layers)."""
    attention = 2 * config.dim * config.head_dim * (config.n_heads + config.kv_heads)
    layer = attention + 3 * config.dim * config.ffn_dim + 2 * config.dim
    return 2 * config.vocab_size * config.dim + config.n_layers * layer + config.dim


def training_flops_per_token(config: ModelConfig, *, seq_len: int) -> int:
    """Return the FLOPs of forward and backward per token, PaLM's way (arXiv 2204.02311, appendix B).

    6 per weight that multiplies each token (the embedding does not; the unembedding does, once per head)
    plus 12 x layers x heads x head_dim x seq_len for attention. Recomputation does not count.
    """
    norms = (2 * config.n_layers + 1) * config.dim
    matrices = parameter_count(config) - norms - 2 * config.vocab_size * config.dim
    unembedding = config.n_future_tokens * config.vocab_size * config.dim
    attention = 12 * config.n_layers * config.n_heads * config.head_dim * seq_len
    return 6 * (matrices + unembedding) + attention
