"""Drawing tokens and accepting drafts: functions of logits, probabilities and random numbers.

Each sequence has random numbers of its own (`RandomNumbers`), so that its tokens do not depend on the other sequences
of a batch. `propose` draws drafts, and `judge` decides which of them the model's own next-token distributions accept.
Greedy decoding is the limit of temperature 0, where a distribution has all its mass on one token and accepts a draft
only if it is that token. So greedy decoding compares ids and computes no distributions.

Shape suffixes as in `pipeline.model.network`; L is the number of drafts in a block; a tensor (..., V) may have any
leading dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options for drawing a token from logits."""

    temperature: float = 0.0
    """Divides the logits; 0 always chooses the most probable token (greedy)."""
    top_p: float = 1.0
    """Sample from the smallest set of most probable tokens with at least this total probability."""
    seeds: Sequence[int | tuple[int, ...]] | None = None
    """The seed of each sequence; None is 0, 1, 2 and so on."""


GREEDY = Sampling()
_STEPS_AT_ONCE = 64


class RandomNumbers:
    """Numbers from [0, 1) of every sequence of a batch; which ones they are depends on the sequence's own seed alone.

    They are drawn on the CPU for many steps at once, and are the same on every device.
    """

    def __init__(self, seeds: Sequence[int | tuple[int, ...]], *, n_per_step: int, device: torch.device) -> None:
        """Begin the numbers of each seed; each step takes `n_per_step` of them."""
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        self._n_per_step, self._device = n_per_step, device
        self._step, self._drawn_BSR = _STEPS_AT_ONCE, torch.empty(0)

    def next_step(self) -> Tensor:
        """Return the numbers (B, n_per_step), fp32, of the next step."""
        if self._step == _STEPS_AT_ONCE:
            shape = (_STEPS_AT_ONCE, self._n_per_step)
            drawn = np.stack([generator.random(shape, dtype=np.float32) for generator in self._generators])
            self._step, self._drawn_BSR = 0, torch.from_numpy(drawn).to(self._device)
        self._step += 1
        return self._drawn_BSR[:, self._step - 1]

    def keep_rows(self, rows: list[int]) -> None:
        """Keep only these sequences."""
        self._generators = [self._generators[row] for row in rows]
        self._drawn_BSR = self._drawn_BSR[rows]


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """Drafted tokens of a block."""

    ids_BL: Tensor
    """Drafted ids, int64."""
    probs_BLV: Tensor | None
    """The distributions that the ids were drawn from; None for greedy drafts."""
    are_finite_BL: Tensor
    """Whether all logits of each draft were finite."""

    @classmethod
    def joined(cls, drafts: "Sequence[Drafts]") -> "Drafts":
        """Return successive drafts of the same sequences as those of one block."""
        probs = [part.probs_BLV for part in drafts if part.probs_BLV is not None]
        return cls(
            ids_BL=torch.cat([part.ids_BL for part in drafts], dim=1),
            probs_BLV=torch.cat(probs, dim=1) if probs else None,
            are_finite_BL=torch.cat([part.are_finite_BL for part in drafts], dim=1),
        )


def are_finite(logits_V: Tensor) -> Tensor:
    """Return whether all logits (..., V) are finite, (...)."""
    return logits_V.isfinite().all(-1)


def propose(logits_BLV: Tensor, sampling: Sampling, *, uniforms_BL: Tensor) -> Drafts:
    """Draw one draft from the logits of each position, with a random number each; L may be 0."""
    are_finite_BL = are_finite(logits_BLV)
    if sampling.temperature == 0:
        return Drafts(ids_BL=logits_BLV.argmax(-1), probs_BLV=None, are_finite_BL=are_finite_BL)
    probs_BLV = probabilities(logits_BLV, sampling)
    ids_BL = sample(probs_BLV, uniforms_BL)
    return Drafts(ids_BL=ids_BL, probs_BLV=probs_BLV, are_finite_BL=are_finite_BL)


def judge(drafts: Drafts, logits_BTV: Tensor, sampling: Sampling, *, uniforms_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of accepted drafts (B,), int64, and the token (B, 1) after the last accepted one.

    Args:
        drafts: the drafts of each sequence.
        logits_BTV: the model's own logits with T = L + 1, before each draft and after all.
        sampling: the settings that the drafts were drawn with.
        uniforms_BT: a random number for each draft, and one for the token after them.
    """
    if drafts.probs_BLV is None:
        best_BT = logits_BTV.argmax(-1)
        n_accepted_B = (drafts.ids_BL == best_BT[:, :-1]).long().cumprod(-1).sum(-1)
        return n_accepted_B, best_BT.gather(-1, n_accepted_B.unsqueeze(-1))
    target_probs_BTV = probabilities(logits_BTV, sampling)
    n_accepted_B, weights_BV = accept(
        drafts.ids_BL, drafts.probs_BLV, target_probs_BTV, uniforms_BL=uniforms_BT[:, :-1]
    )
    return n_accepted_B, sample(weights_BV, uniforms_BT[:, -1]).unsqueeze(-1)


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Return the distributions (..., V), fp32, to sample from, given logits (..., V) and a temperature above 0."""
    logits_V = logits_V.float()
    # the greatest becomes 0 and stays finite at any temperature; a subnormal divisor could be taken for 0
    logits_V = logits_V - logits_V.amax(-1, keepdim=True)
    probs_V = torch.softmax(logits_V / max(sampling.temperature, torch.finfo(torch.float32).tiny), dim=-1)
    if sampling.top_p == 1:
        return probs_V
    sorted_V, order_V = probs_V.sort(dim=-1, descending=True)
    above_V = sorted_V.cumsum(-1) - sorted_V  # total probability of the tokens before this one
    kept_V = torch.where(above_V < sampling.top_p, sorted_V, 0.0)
    return torch.zeros_like(probs_V).scatter_(-1, order_V, kept_V / kept_V.sum(-1, keepdim=True))


def sample(weights_V: Tensor, uniforms: Tensor) -> Tensor:
    """Return ids (...) drawn in proportion to non-negative weights (..., V), which need not sum to 1.

    Args:
        weights_V: the weights.
        uniforms: random numbers (...) in [0, 1); each chooses the id where the running sum of the weights exceeds its
            share of their total.
    """
    sums_V = weights_V.cumsum(-1)
    total = sums_V[..., -1:]
    # a product rounded up to the total would choose an id after the last one with a weight
    share = torch.minimum(uniforms.unsqueeze(-1) * total, total.nextafter(torch.zeros_like(total)))
    ids = torch.searchsorted(sums_V, share.contiguous(), right=True).squeeze(-1)
    return ids.clamp(max=weights_V.shape[-1] - 1)  # without this, weights that are nan would give V


def accept(
    drafts_BL: Tensor, draft_probs_BLV: Tensor, target_probs_BTV: Tensor, *, uniforms_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Decide how many drafts to accept, and how to draw the token after them (Leviathan et al. 2023).

    Draft t is accepted if all drafts before it are and its uniform is below p/q. The token after the last accepted
    draft is drawn from the residual max(p - q, 0), or from p if all drafts were accepted. So all tokens are distributed
    as p.

    Args:
        drafts_BL: drafted ids; L may be 0.
        draft_probs_BLV: q, the distributions that the drafts were drawn from.
        target_probs_BTV: p, (B, L + 1, V): the model's next-token distributions before each draft and after all.
        uniforms_BL: random numbers in [0, 1).

    Returns:
        The number of accepted drafts (B,), int64, and the unnormalised weights (B, V) of the next token.
    """
    p_BL = target_probs_BTV[:, :-1].gather(-1, drafts_BL.unsqueeze(-1)).squeeze(-1)
    q_BL = draft_probs_BLV.gather(-1, drafts_BL.unsqueeze(-1)).squeeze(-1)
    n_accepted_B = (uniforms_BL * q_BL < p_BL).long().cumprod(-1).sum(-1)
    rows_B = torch.arange(len(drafts_BL), device=drafts_BL.device)
    p_BV = target_probs_BTV[rows_B, n_accepted_B]
    q_BV = F.pad(draft_probs_BLV, (0, 0, 0, 1))[rows_B, n_accepted_B]  # q = 0 after the last draft
    residual_BV = (p_BV - q_BV).clamp(min=0)
    # with p = q the residual is 0, but rounding can reject a draft even then
    return n_accepted_B, torch.where(residual_BV.sum(-1, keepdim=True) > 0, residual_BV, p_BV)
