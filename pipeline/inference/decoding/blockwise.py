"""The loop of blockwise decoding (Stern et al. 2018) for any drafter: draft a block, verify it, keep accepted drafts.

    block        newest   draft 1  draft 2  draft 3
    verified     checks 1 checks 2 checks 3 adds one more     the accepted drafts, then one certain token

Each step verifies one block in one forward. The block holds the newest token, which is not yet cached, and drafts of
the tokens after it. So a step yields one token more than it accepts drafts. The next block starts after the accepted
drafts and overwrites what the caches hold of the rejected ones. Without drafts this is autoregressive decoding. The
prompt is a block without drafts. Each sequence advances at its own pace, and finished ones leave the batch.

`sampling.py` decides which drafts are accepted and draws tokens. No token is ever taken from logits that are not
finite: that is a `NotFiniteError`. The device checks it, and the result is read together with the tokens. In low
precision, a model may resolve near-ties differently in blocks of different length.

Shape suffixes as in `pipeline.model.network`; L is the number of drafts in a block.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pipeline.inference.decoding.sampling import GREEDY, Drafts, RandomNumbers, Sampling, are_finite, judge, propose


class NotFiniteError(ArithmeticError):
    """The model computed logits that are not finite numbers.

    Attributes:
        sequence: the index of the sequence.
        n_tokens: the number of tokens before the one that these logits are of, with the prompt's.
        draft: 0 if they are the model's own logits of the next token, otherwise which of the drafts they are of.
    """

    def __init__(self, *, sequence: int, n_tokens: int, draft: int) -> None:
        super().__init__(f"the logits of sequence {sequence} after {n_tokens} tokens are not finite (draft {draft})")
        self.sequence, self.n_tokens, self.draft = sequence, n_tokens, draft


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The result of decoding a batch of prompts."""

    token_ids: list[list[int]]
    """Generated ids of each sequence; the last one is a stop id if that ended the sequence."""
    forwards: list[int]
    """Forwards of the trunk for each sequence, without the prompt's; each verified one block."""
    accepted: list[list[int]]
    """For each sequence, the number of blocks whose first draft was accepted, whose second was, and so on."""
    seconds: float
    """Wall time of the whole batch, including the prompts' forward."""

    @property
    def tokens_per_forward(self) -> list[float]:
        """Tokens per forward of each sequence: 1.0 if autoregressive, at most one more than a block has drafts.

        The prompt's forward is not counted, and neither is the first token, which it yields.
        """
        pairs = zip(self.token_ids, self.forwards, strict=True)
        return [(len(ids) - 1) / forwards if forwards else 1.0 for ids, forwards in pairs]

    @property
    def tokens_per_s(self) -> list[float]:
        """Tokens of each sequence divided by the seconds of the batch."""
        return [len(ids) / self.seconds for ids in self.token_ids]


class Drafter(Protocol):
    """A model with its caches, and a way to draft blocks."""

    n_drafts: int
    """Number of drafts in a block."""
    max_seq_len: int
    """Maximum number of tokens of a sequence, including its prompt."""

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Cache the prompts in rows 0 to B - 1; return the logits (B, 1, V) of the token after each."""
        ...

    def keep_rows(self, rows: list[int]) -> None:
        """Keep only these rows of the last block's batch, as the first rows of the next batch."""
        ...

    def draft(
        self,
        newest_B1: Tensor,
        n_accepted_B: Tensor,
        starts: Sequence[int],
        sampling: Sampling,
        *,
        uniforms_BL: Tensor,
    ) -> Drafts:
        """Draft the tokens after the newest one of each sequence.

        Args:
            newest_B1: ids of the newest tokens, int64.
            n_accepted_B: number of accepted drafts of the last block.
            starts: positions of the newest tokens.
            sampling: how drafts are drawn.
            uniforms_BL: a random number for each draft.
        """
        ...

    def verify(self, block_BT: Tensor, starts: Sequence[int]) -> Tensor:
        """Cache the newest token and its drafts; return the logits (B, T, V) of the token after each."""
        ...


@torch.inference_mode()
def decode_blockwise(
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    max_gen_len: int,
    stop_ids: Collection[int],
    sampling: Sampling = GREEDY,
    on_tokens: Callable[[int, list[int]], bool | None] = lambda sequence, token_ids: None,
) -> Generation:
    """Continue a batch of prompts until a stop id, `max_gen_len` new tokens, or `drafter.max_seq_len` tokens in all.

    Args:
        drafter: the model, with room for the batch; the contents of its caches are overwritten.
        prompts: ids of each sequence, 1 to max_seq_len - 1 of them; lengths may differ.
        max_gen_len: maximum number of tokens to generate per sequence, at least 1.
        stop_ids: ids that end a sequence; the stop id is its last token.
        sampling: how tokens are drawn.
        on_tokens: called with the index of a sequence and its new tokens as they come; returns True to end the sequence
            after them.

    Raises:
        ValueError: a prompt is empty or leaves no room for one more token, or the batch does not fit into the caches.
        NotFiniteError: the logits of a token are not finite.
    """
    started = time.perf_counter()
    sequences = _sequences(prompts, max_gen_len=max_gen_len, max_seq_len=drafter.max_seq_len, n_drafts=drafter.n_drafts)
    active = sequences
    logits_BTV = drafter.read_prompts(prompts)
    n_drafts = drafter.n_drafts
    seeds = range(len(prompts)) if sampling.seeds is None else sampling.seeds
    random = RandomNumbers(seeds, n_per_step=2 * n_drafts + 1, device=logits_BTV.device)
    uniforms_BR = random.next_step()[:, 2 * n_drafts :]
    drafts = propose(logits_BTV[:, 1:], sampling, uniforms_BL=uniforms_BR[:, :0])  # none yet
    while True:
        n_accepted_B, certain_B1 = judge(
            drafts, logits_BTV, sampling, uniforms_BT=uniforms_BR[:, -logits_BTV.shape[1] :]
        )
        # the only wait for the device in this step
        found = (n_accepted_B.unsqueeze(-1), certain_B1, are_finite(logits_BTV), drafts.are_finite_BL, drafts.ids_BL)
        step = torch.cat(found, dim=-1).tolist()
        n_now = drafts.ids_BL.shape[1]
        for sequence, (n_accepted, certain, *more) in zip(active, step, strict=True):
            own, drafted, ids = more[: n_now + 1], more[n_now + 1 : 2 * n_now + 1], more[2 * n_now + 1 :]
            new = sequence.extend([*ids[:n_accepted], certain], stop_ids=stop_ids)
            sequence.check_finite(own[: len(new)], drafted)
            sequence.accepted = [n + (draft < n_accepted) for draft, n in enumerate(sequence.accepted)]
            sequence.is_finished |= bool(on_tokens(sequence.index, new))

        rows = [row for row, sequence in enumerate(active) if not sequence.is_finished]
        if not rows:
            break
        if len(rows) < len(active):
            active = [active[row] for row in rows]
            n_accepted_B, certain_B1 = n_accepted_B[rows], certain_B1[rows]
            drafter.keep_rows(rows)
            random.keep_rows(rows)
        starts = [sequence.last_position for sequence in active]
        uniforms_BR = random.next_step()
        drafts = drafter.draft(certain_B1, n_accepted_B, starts, sampling, uniforms_BL=uniforms_BR[:, :n_drafts])
        logits_BTV = drafter.verify(torch.cat((certain_B1, drafts.ids_BL), dim=-1), starts)
        for sequence in active:
            sequence.forwards += 1
    return Generation(
        token_ids=[sequence.token_ids for sequence in sequences],
        forwards=[sequence.forwards for sequence in sequences],
        accepted=[sequence.accepted for sequence in sequences],
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Sequence:
    """The progress of one sequence of a batch."""

    index: int
    n_prompt: int
    limit: int  # maximum number of tokens to generate
    accepted: list[int]  # accepted so often, for each draft of a block
    token_ids: list[int] = field(default_factory=list)
    forwards: int = 0
    is_finished: bool = False

    @property
    def last_position(self) -> int:
        """Position of the newest token, which is not yet cached."""
        return self.n_prompt + len(self.token_ids) - 1

    def check_finite(self, own: Sequence[int], drafted: Sequence[int]) -> None:
        """Check the logits that the newest tokens were taken from, the model's own, and those of all their drafts.

        Raises:
            NotFiniteError: names the first that are not finite.
        """
        n_tokens = self.n_prompt + len(self.token_ids) - len(own)
        if 0 in own:
            raise NotFiniteError(sequence=self.index, n_tokens=n_tokens + own.index(0), draft=0)
        if 0 in drafted:
            raise NotFiniteError(sequence=self.index, n_tokens=n_tokens, draft=drafted.index(0) + 1)

    def extend(self, token_ids: list[int], *, stop_ids: Collection[int]) -> list[int]:
        """Append tokens up to a stop id or the limit; return the appended ones."""
        new = token_ids[: self.limit - len(self.token_ids)]
        n_new = next((n for n, token_id in enumerate(new, start=1) if token_id in stop_ids), len(new))
        new = new[:n_new]
        self.token_ids += new
        self.is_finished = new[-1] in stop_ids or len(self.token_ids) == self.limit
        return new


def _sequences(
    prompts: Sequence[Sequence[int]], *, max_gen_len: int, max_seq_len: int, n_drafts: int
) -> list[_Sequence]:
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < max_seq_len:
            raise ValueError(f"prompt {index} has {len(prompt)} tokens; 1 to {max_seq_len - 1} leave room for one more")
    return [
        _Sequence(
            index=index,
            n_prompt=len(prompt),
            limit=min(max_gen_len, max_seq_len - len(prompt)),
            accepted=[0] * n_drafts,
        )
        for index, prompt in enumerate(prompts)
    ]
