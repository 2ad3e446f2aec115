"""Drawing many samples of many problems in batches, such that a killed run continues as if it had not been.

The samples are dealt to batches once and for all, in order, and each batch draws from a seed of its own. A batch of
which samples are missing is drawn again, whole: those that were there come out as they did, and the others join them.
So no draws serve twice, and what is drawn does not depend on where a run was interrupted.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tqdm import tqdm

from common.tokenizers import Tokenizer
from pipeline.inference.decoding.prompts import Prompt
from pipeline.inference.decoding.session import Completion, Decoding, Session
from pipeline.inference.evaluation.sample_log import SampleId, SampleLog


def deal_batches(
    task_ids: Sequence[str], temperatures: Sequence[float], *, n_samples: int, batch_size: int
) -> Iterator[list[SampleId]]:
    """Yield all samples in batches of one temperature each, since all sequences of a batch are decoded alike."""
    for temperature in temperatures:
        samples = [SampleId(task_id, temperature, number) for task_id in task_ids for number in range(n_samples)]
        for first in range(0, len(samples), batch_size):
            yield samples[first : first + batch_size]


def batch_seed(seed: int, batch: Sequence[SampleId]) -> int:
    """Return 63 bits that depend on the seed and on which samples these are."""
    digest = hashlib.sha256(json.dumps([seed, batch]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_missing(
    session: Session,
    tokenizer: Tokenizer,
    decoding: Decoding,
    *,
    samples: SampleLog,
    batches: Sequence[list[SampleId]],
    prompts: Mapping[str, Prompt],
) -> None:
    """Complete the batches of which samples are missing, and log those: the completion, and what ended it.

    Args:
        session: takes a batch at once.
        tokenizer: the session's.
        decoding: its seed is that of all batches, and its temperature is not used.
        samples: what was drawn already; grows.
        batches: all of them, as `deal_batches` deals them.
        prompts: by task_id.

    Raises:
        UserError: the device's memory or the disk's space does not suffice.
    """
    n_samples, n_drawn = sum(map(len, batches)), len(samples.entries)
    with tqdm(desc="completing", total=n_samples, initial=n_drawn, unit="sample", disable=None) as bar:
        for batch in batches:
            missing = [sample not in samples.entries for sample in batch]
            if not any(missing):
                continue
            of_batch = replace(decoding, temperature=batch[0].temperature, seed=batch_seed(decoding.seed, batch))
            (drawn,) = session.batches([prompts[sample.task_id] for sample in batch], of_batch)
            rows = zip(batch, drawn.completions, missing, strict=True)
            samples.add(
                (sample, {"completion": completion.completion, "ended": _end(completion, tokenizer, decoding)})
                for sample, completion, is_missing in rows
                if is_missing
            )
            bar.update(sum(missing))


def _end(completion: Completion, tokenizer: Tokenizer, decoding: Decoding) -> str:
    """Return what ended a completion: eos, length, or stop (a stop text that takes the last token counts as length)."""
    if completion.token_ids[-1] == tokenizer.eos_id:
        return "eos"
    return "length" if len(completion.token_ids) == decoding.max_gen_len else "stop"
