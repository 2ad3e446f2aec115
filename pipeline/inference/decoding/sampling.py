"""Drawing tokens and accepting drafts: functions of logits, probabilities and random numbers.

`propose` draws drafts, and `judge` decides which of them the model's own next-token distributions accept. Greedy
decoding is the limit of temperature 0, where a distribution has all its mass on one token and accepts a draft only if
it is that token. So greedy decoding compares ids and computes no distributions.

Shape suffixes as in `pipeline.model.network`; L is the number of drafts in a block; a tensor (..., V) may have any
leading dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    generator: torch.Generator | None = None
    """Random number generator on the model's device; None is torch's global one."""


GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """Drafted tokens of a block."""

    ids_BL: Tensor
    """Drafted ids, int64."""
    probs_BLV: Tensor | None
    """The distributions that the ids were drawn from; None for greedy drafts."""

    @classmethod
    def joined(cls, drafts: "Sequence[Drafts]") -> "Drafts":
        """Return successive drafts of the same sequences as those of one block."""
        probs = [part.probs_BLV for part in drafts if part.probs_BLV is not None]
        ids_BL = torch.cat([part.ids_BL for part in drafts], dim=1)
        return cls(ids_BL=ids_BL, probs_BLV=torch.cat(probs, dim=1) if probs else None)


def propose(logits_BLV: Tensor, sampling: Sampling) -> Drafts:
    """Draw one draft from the logits of each position; L may be 0."""
    if sampling.temperature == 0:
        return Drafts(ids_BL=logits_BLV.argmax(-1), probs_BLV=None)
    probs_BLV = probabilities(logits_BLV, sampling)
    return Drafts(ids_BL=sample(probs_BLV, sampling.generator), probs_BLV=probs_BLV)


def judge(drafts: Drafts, logits_BTV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the number of accepted drafts (B,), int64, and the token (B, 1) after the last accepted one.

    Args:
        drafts: the drafts of each sequence.
        logits_BTV: the model's own logits with T = L + 1, before each draft and after all.
        sampling: the settings that the drafts were drawn with.
    """
    if drafts.probs_BLV is None:
        best_BT = logits_BTV.argmax(-1)
        n_accepted_B = (drafts.ids_BL == best_BT[:, :-1]).long().cumprod(-1).sum(-1)
        return n_accepted_B, best_BT.gather(-1, n_accepted_B.unsqueeze(-1))
    uniforms_BL = torch.rand(drafts.ids_BL.shape, device=logits_BTV.device, generator=sampling.generator)
    target_probs_BTV = probabilities(logits_BTV, sampling)
    n_accepted_B, weights_BV = accept(drafts.ids_BL, drafts.probs_BLV, target_probs_BTV, uniforms_BL=uniforms_BL)
    return n_accepted_B, sample(weights_BV, sampling.generator).unsqueeze(-1)


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Return the distributions (..., V), fp32, to sample from, given logits (..., V) and a temperature above 0."""
    probs_V = torch.softmax(logits_V.float() / sampling.temperature, dim=-1)
    if sampling.top_p == 1:
        return probs_V
    sorted_V, order_V = probs_V.sort(dim=-1, descending=True)
    above_V = sorted_V.cumsum(-1) - sorted_V  # total probability of the tokens before this one
    kept_V = torch.where(above_V < sampling.top_p, sorted_V, 0.0)
    return torch.zeros_like(probs_V).scatter_(-1, order_V, kept_V / kept_V.sum(-1, keepdim=True))


def sample(weights_V: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return ids (...) drawn in proportion to non-negative weights (..., V), which need not sum to 1."""
    # argmax(w / exponential noise) draws exactly; the checks of torch.multinomial would synchronise with the GPU
    noise_V = torch.empty_like(weights_V).exponential_(generator=generator)
    return (weights_V / noise_V.clamp_(min=torch.finfo(noise_V.dtype).tiny)).argmax(-1)


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
