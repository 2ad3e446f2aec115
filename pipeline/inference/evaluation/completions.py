"""Drawing many completions of every problem in batches; an interrupted run draws the same ones when it is continued.

Each completion has its own seed, so what is drawn does not depend on what is drawn beside it. All completions are dealt
to batches in a fixed order. If some completions of a batch are missing, the whole batch is decoded again, and the
missing ones are added. So even rounding, which may differ with the size of a batch, does not depend on where a run was
interrupted.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tqdm import tqdm

from common.tokenizers import Tokenizer
from pipeline.inference.decoding.prompts import Prompt
from pipeline.inference.decoding.session import Completion, Decoding, Session
from pipeline.inference.evaluation.completion_log import CompletionId, CompletionLog


def deal_batches(
    task_ids: Sequence[str], temperatures: Sequence[float], *, n_samples: int, batch_size: int
) -> Iterator[list[CompletionId]]:
    """Yield all completions in batches; each batch has one temperature, since a batch is decoded with one.

    Args:
        task_ids: the problems.
        temperatures: each problem is completed at each of them.
        n_samples: completions per problem and temperature.
        batch_size: maximum number of completions in a batch.
    """
    for temperature in temperatures:
        ids = [CompletionId(task_id, temperature, number) for task_id in task_ids for number in range(n_samples)]
        for first in range(0, len(ids), batch_size):
            yield ids[first : first + batch_size]


def completion_seed(seed: int, which: CompletionId) -> int:
    """Return a seed of 63 bits, hashed from `seed` and the completion's identity."""
    digest = hashlib.sha256(json.dumps([seed, which]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_missing(
    session: Session,
    tokenizer: Tokenizer,
    decoding: Decoding,
    *,
    completions: CompletionLog,
    batches: Sequence[list[CompletionId]],
    prompts: Mapping[str, Prompt],
) -> None:
    """Decode every batch with missing completions, and log the missing ones with what ended them.

    Args:
        session: must hold a whole batch.
        tokenizer: the session's tokenizer.
        decoding: its seed is the seed of the whole evaluation; its temperature is ignored.
        completions: the completions drawn so far; the new ones are added.
        batches: all batches, from `deal_batches`.
        prompts: by task_id.

    Raises:
        UserError: the device's memory or the disk's space is too small.
    """
    n_completions, n_drawn = sum(map(len, batches)), len(completions.entries)
    with tqdm(desc="completing", total=n_completions, initial=n_drawn, unit="completion", disable=None) as bar:
        for batch in batches:
            missing = [completion_id not in completions.entries for completion_id in batch]
            if not any(missing):
                continue
            of_batch = replace(decoding, temperature=batch[0].temperature)
            seeds = [completion_seed(decoding.seed, completion_id) for completion_id in batch]
            texts = [prompts[completion_id.task_id] for completion_id in batch]
            (drawn,) = session.batches(texts, of_batch, seeds=seeds)
            rows = zip(batch, drawn.completions, missing, strict=True)
            completions.add(
                (completion_id, {"completion": completion.completion, "ended": _end(completion, tokenizer, decoding)})
                for completion_id, completion, is_missing in rows
                if is_missing
            )
            bar.update(sum(missing))


def _end(completion: Completion, tokenizer: Tokenizer, decoding: Decoding) -> str:
    """Return what ended a completion: "eos", "length" or "stop".

    A stop text that is completed by the last token that max_gen_len allows counts as "length".
    """
    if completion.token_ids[-1] == tokenizer.eos_id:
        return "eos"
    return "length" if len(completion.token_ids) == decoding.max_gen_len else "stop"
