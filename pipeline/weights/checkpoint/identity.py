"""The identity of a checkpoint's run: the fields of its recipe, and the corpus that it was trained on."""

from pathlib import Path
from typing import Any

# The fields that identify a run: if one of them differs, the checkpoint belongs to another run.
IDENTITY = {
    "model": None,  # every field
    "data": ("seq_len", "shuffle_seed", "shuffle_algo", "shuffle_block_size", "num_canonical_nodes"),
    "train": ("batch_tokens", "seed"),
}
_NO_IDENTITY = {"size", "init_from", "new_heads"}  # shorthand for other fields, and the origin of the first weights


def identity_problems(*, saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences that make two resolved configs different runs, one line each."""
    problems = []
    for section, fields in IDENTITY.items():
        for field in fields or sorted(set(now[section]) - _NO_IDENTITY):
            before, after = saved.get(section, {}).get(field), now[section][field]
            if before != after:
                problems.append(f"it was saved with {section}.{field}={before!r}, and this run has {after!r}")
    return problems


def changed_corpus(*, saved: dict[str, str] | None, now: dict[str, str] | None) -> list[str]:
    """Return which parts of the corpus are not as they were; see `shard_folder.corpus_of`.

    None is unknown: an earlier version did not record it.
    """
    if saved is None or now is None:
        return []
    return [part for part, its_hash in now.items() if saved.get(part) != its_hash]


def other_data_message(checkpoint: Path, changed: list[str], *, saved: dict[str, Any], now: dict[str, Any]) -> str:
    """Return why a run does not go on with another corpus, and the ways on; `saved` and `now` are resolved configs."""
    return (
        f"cannot continue from {checkpoint}: data.shards={now['data']['shards']} has another"
        f" {' and another '.join(changed)} than the shards that it was trained on (data.shards="
        f"{saved['data']['shards']}). Name those, set another run.name, or go on with the new ones from their"
        " beginning: --other_data"
    )
