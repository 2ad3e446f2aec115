"""How tokens are drawn, and which drafts stand: pure functions of logits, probabilities and random numbers.

Greedy decoding is temperature 0: distributions with all their mass on one token, which accept a draft only if it is
that token. So one acceptance rule serves both.

Shape suffixes as in `model.py`; a tensor (..., V) may have any leading dimensions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from logits.

    temperature: divides the logits; 0 always takes the most probable token (greedy).
    top_p: sample from the smallest set of most probable tokens that holds this much probability.
    generator: source of randomness, on the model's device; None is torch's global one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = None


GREEDY = Sampling()


def probabilities(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Return the distributions (..., V), fp32, from which `sampling` draws, given logits (..., V)."""
    if sampling.temperature == 0:
        return torch.zeros_like(logits_V, dtype=torch.float32).scatter_(-1, logits_V.argmax(-1, keepdim=True), 1.0)
    probs_V = torch.softmax(logits_V.float() / sampling.temperature, dim=-1)
    if sampling.top_p == 1:
        return probs_V
    sorted_V, order_V = probs_V.sort(dim=-1, descending=True)
    above_V = sorted_V.cumsum(-1) - sorted_V  # probability of all tokens ahead of this one
    kept_V = torch.where(above_V < sampling.top_p, sorted_V, 0.0)
    return torch.zeros_like(probs_V).scatter_(-1, order_V, kept_V / kept_V.sum(-1, keepdim=True))


def sample(weights_V: Tensor, sampling: Sampling) -> Tensor:
    """Return ids (...) drawn in proportion to non-negative weights (..., V), which need not sum to one."""
    if sampling.temperature == 0:
        return weights_V.argmax(-1)
    # argmax(w / exponential noise) is an exact draw; torch.multinomial would make a GPU wait for its checks
    noise_V = torch.empty_like(weights_V).exponential_(generator=sampling.generator)
    return (weights_V / noise_V.clamp_(min=torch.finfo(noise_V.dtype).tiny)).argmax(-1)


def accept(
    drafts_BT: Tensor, draft_probs_BTV: Tensor, target_probs_BTV: Tensor, *, uniforms_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Decide how many drafts stand, and from what the token after them is drawn (Leviathan et al. 2023).

    Draft t stands if all before it do and its uniform is below p/q. The token after the last that stands is drawn
    from the residual max(p - q, 0), or from p itself if no draft is left: so all tokens are distributed as p.

    Args:
        drafts_BT: drafted ids; T may be 0.
        draft_probs_BTV: q, from which the drafts were drawn.
        target_probs_BTV: p, (B, T + 1, V): the model's next-token distribution before each draft, and after all.
        uniforms_BT: random numbers in [0, 1).

    Returns:
        The number of accepted drafts (B,), int64, and the weights (B, V), not normalised, of the next token.
    """
    p_BT = target_probs_BTV[:, :-1].gather(-1, drafts_BT.unsqueeze(-1)).squeeze(-1)
    q_BT = draft_probs_BTV.gather(-1, drafts_BT.unsqueeze(-1)).squeeze(-1)
    n_accepted_B = (uniforms_BT * q_BT < p_BT).long().cumprod(-1).sum(-1)
    rows_B = torch.arange(len(drafts_BT), device=drafts_BT.device)
    p_BV = target_probs_BTV[rows_B, n_accepted_B]
    q_BV = F.pad(draft_probs_BTV, (0, 0, 0, 1))[rows_B, n_accepted_B]  # q = 0 after the last draft
    residual_BV = (p_BV - q_BV).clamp(min=0)
    # p = q leaves nothing, and yet rounding can reject there
    return n_accepted_B, torch.where(residual_BV.sum(-1, keepdim=True) > 0, residual_BV, p_BV)
