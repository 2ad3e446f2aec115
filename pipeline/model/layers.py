"""The transformer layer, Llama 2's: RMSNorm, rotary positions on interleaved pairs, SwiGLU, no biases.

Shape suffixes as in `network.py`.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config.model import ModelConfig


class KeyValueCache(Protocol):
    """The interface of a decoding cache for attention: it stores new keys and values, and returns all visible ones."""

    def update(self, key_BKTE: Tensor, value_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of the new positions; return those of all cached positions, each (B, K, S, E)."""
        ...


def at_least_fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32, or unchanged if it is fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32 for low-precision inputs, as in Llama."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        normed = F.rms_norm(at_least_fp32(hidden_BTD), (hidden_BTD.shape[-1],), eps=self.eps)
        return normed.to(hidden_BTD.dtype) * self.weight


def rotary_factors(positions: Tensor, *, head_dim: int, theta: float) -> Tensor:
    """Return the factors e^(i angle) of the rotary embedding, complex64, shape `positions.shape + (head_dim / 2,)`.

    They are computed on use and not kept as a buffer, because a buffer would be cast to bf16 with the model, which
    corrupts the angles of late positions.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.unsqueeze(-1).float() * theta**-exponents
    return torch.complex(angles.cos(), angles.sin())


def rotate(x_BTHE: Tensor, rotary: Tensor) -> Tensor:
    """Rotate adjacent pairs of the last dimension (Meta's layout, not Hugging Face's halves) in fp32.

    One complex product gives the same result as four real ones, 2.5 times (1 token) to 9 times (256 tokens) as fast on
    a CPU.
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
        self.attend = F.scaled_dot_product_attention  # sequence parallelism replaces this function

    def forward(
        self,
        hidden_BTD: Tensor,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend causally, or, with a cache, to the cached positions that `mask` (B, 1, T, S) allows.

        The mask is boolean or is added to the scores. Without a mask, a single query attends to everything cached.
        """
        query, key, value = (
            project(hidden_BTD).unflatten(-1, (-1, self.head_dim)) for project in (self.wq, self.wk, self.wv)
        )
        query, key = rotate(query, rotary), rotate(key, rotary)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value)
        is_causal = mask is None and query.shape[2] > 1
        mixed = self.attend(query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=self.is_grouped)
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
    """One pre-norm transformer layer. The trunk is a stack of these; each head is one of them."""

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


def run_layer(layer: nn.Module, hidden_BTD: Tensor, rotary: Tensor, *, recompute: bool) -> Tensor:
    """Return the layer's output. With `recompute`, its activations are not saved but recomputed in the backward."""
    if recompute:
        return checkpoint(layer, hidden_BTD, rotary, use_reentrant=False)
    return layer(hidden_BTD, rotary)


def training_rotary(n_positions: int, config: ModelConfig, *, device: torch.device, first: int = 0) -> Tensor:
    """Return the rotary factors of `n_positions` positions from `first` on."""
    positions = torch.arange(first, first + n_positions, device=device)
    return rotary_factors(positions, head_dim=config.head_dim, theta=config.rope_theta)
