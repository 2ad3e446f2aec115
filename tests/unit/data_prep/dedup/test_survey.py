"""Exact and near deduplication by write_shards, against sets of words; over parts and workers, and after a kill."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from common.shard_format import METADATA
from data_prep import write_parts, write_shards
from data_prep.filters.ngrams import words_of
from data_prep.shards.parts import WORK_FOLDER
from data_prep.shards.tally import REPORT
from tests.helpers.held import Hold
from tests.helpers.own_problems import HUMANEVAL, write_jsonl
from tests.helpers.shard_writing import STDLIB, copy_packages, files_of, held_run, kill, option_words

CODE = (STDLIB / "argparse.py").read_text()


def _arguments(corpus: Path, out: Path, **changes: Any) -> list[str]:
    options = {
        "input": corpus, "tokenizer": "bytes", "out": out, "seq_len": 256, "val_fraction": 0, "part_bytes": 100_000,
        "num_workers": 1, "extensions": ".py .jsonl",
    }  # fmt: skip
    return option_words(options | changes)


def _report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / REPORT).read_text()))


def _dropped(out: Path) -> dict[str, list[str]]:
    """Return the names of the files of the first documents that each rule dropped, from the report."""
    examples = _report(out)["samples"].items()
    return {rule: [Path(example["source"]).name.partition(":")[0] for example in found] for rule, found in examples}


def _changed(text: str, *, fraction: float, seed: int = 0) -> str:
    """Return the text with a fraction of its lines replaced by lines of new words."""
    generator = random.Random(seed)
    lines = text.split("\n")
    for place in generator.sample(range(len(lines)), k=int(fraction * len(lines))):
        lines[place] = f"    {generator.getrandbits(40):x} = call_{seed}_{place}({generator.getrandbits(40):x})"
    return "\n".join(lines)


def _jaccard(a: str, b: str) -> float:
    """Return the true Jaccard similarity of two texts."""
    left, right = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in map(words_of, (a, b)))
    return len(left & right) / len(left | right)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sources of several parts, with equal and near copies of a file far from it, one of them in a record of jsonl."""
    folder = copy_packages(tmp_path / "corpus", "email", "json")
    (folder / "email").rename(folder / "b_email")
    (folder / "json").rename(folder / "c_json")
    (folder / "a_first.py").write_text(CODE)
    (folder / "b_email" / "copy.py").write_text(CODE)
    (folder / "c_json" / "near.py").write_text(_changed(CODE, fraction=0.05))
    (folder / "c_json" / "respaced.py").write_text(CODE.replace("    ", "\t"))
    (folder / "c_json" / "far.py").write_text(_changed(CODE, fraction=0.4))
    write_jsonl(folder / "d.jsonl", [{"text": CODE}, {"text": "x = 1"}, {"text": "x = 1"}])
    return folder


def test_equal_documents_are_dropped_wherever_they_lie(corpus: Path, tmp_path: Path) -> None:
    write_shards.main(_arguments(corpus, tmp_path / "out", dedup="exact"))
    texts = [path.read_bytes() for path in corpus.rglob("*.py") if path.read_bytes().strip()]
    texts += [CODE.encode(), b"x = 1", b"x = 1"]
    report = _report(tmp_path / "out")
    kept = {"documents": len(set(texts)), "bytes": sum(map(len, set(texts)))}
    assert report["kept"] == kept | {"tokens": kept["documents"] + kept["bytes"]}
    assert report["rules"]["duplicate"]["documents"] == len(texts) - len(set(texts)) == 3
    assert _dropped(tmp_path / "out")["duplicate"] == ["d.jsonl", "d.jsonl", "copy.py"]  # folders come last


def test_near_documents_are_dropped_and_others_stay(corpus: Path, tmp_path: Path) -> None:
    write_shards.main(_arguments(corpus, tmp_path / "out", dedup="near"))
    assert _jaccard(CODE, (corpus / "c_json" / "near.py").read_text()) > 0.75
    assert _jaccard(CODE, (corpus / "c_json" / "far.py").read_text()) < 0.6
    dropped = _dropped(tmp_path / "out")
    assert dropped["near_duplicate"] == ["near.py", "respaced.py"]
    assert dropped["duplicate"] == ["d.jsonl", "d.jsonl", "copy.py"]  # folders come last
    sources = [p for p in corpus.rglob("*.py") if p.name not in ("near.py", "respaced.py", "copy.py")]
    assert all(_jaccard(a.read_text(), CODE) < 0.6 for a in sources if a.name not in ("a_first.py", "__init__.py"))


# Letters of which texts are made, and what stands between words.
SCRIPTS = {
    "English": (range(ord("a"), ord("z")), " "),
    "Chinese": (range(0x4E00, 0x5600), ""),
    "Thai": (range(0xE01, 0xE4E), ""),
    "Japanese": (range(0x3041, 0x30FA), ""),
    "Khmer": (range(0x1780, 0x17D3), ""),
    "Burmese": (range(0x1000, 0x104A), ""),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_changed_character_hides_no_copy_in_any_script(script: str, tmp_path: Path) -> None:
    letters, space = SCRIPTS[script]
    generator = random.Random(script)
    words = ["".join(chr(generator.choice(letters)) for _ in range(generator.randint(1, 6))) for _ in range(400)]
    texts = [space.join(generator.choice(words) for _ in range(120)) for _ in range(20)]
    places = [generator.choice([i for i, letter in enumerate(text) if letter != " "]) for text in texts]
    copies = [text[:place] + chr(letters[0]) + text[place + 1 :] for text, place in zip(texts, places, strict=True)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *copies]])
    write_shards.main(_arguments(tmp_path / "a.jsonl", tmp_path / "out", dedup="near"))
    n_same = sum(text == copy for text, copy in zip(texts, copies, strict=True))
    dropped = {name: counts["documents"] for name, counts in _report(tmp_path / "out")["rules"].items()}
    assert dropped.get("near_duplicate", 0) + dropped.get("duplicate", 0) == 20
    assert dropped.get("duplicate", 0) == n_same < 5


def test_another_method_of_finding_duplicates_is_another_identity(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards.main(_arguments(corpus, tmp_path / "near", dedup="near"))
    write_shards.main(_arguments(corpus, tmp_path / "exact", dedup="exact"))
    monkeypatch.setattr(write_shards, "NEAR_METHOD", "another")
    with pytest.raises(UserError, match=r'near_method "MinHash of 5 words, .*" there, "another" now'):
        write_shards.main(_arguments(corpus, tmp_path / "near", dedup="near"))
    write_shards.main(_arguments(corpus, tmp_path / "exact", dedup="exact"))


def test_both_ends_of_a_chain_of_near_documents_stay(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(2000)]
    chain = [" ".join(words[start : start + 1000]) for start in (0, 100, 200)]
    assert _jaccard(chain[0], chain[1]) > 0.8 > 0.7 > _jaccard(chain[0], chain[2])
    write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in chain])
    write_shards.main(_arguments(tmp_path / "c.jsonl", tmp_path / "out", dedup="near"))
    assert _dropped(tmp_path / "out") == {"near_duplicate": ["c.jsonl"]}
    assert _report(tmp_path / "out")["samples"]["near_duplicate"][0]["text"] == chain[1][:200]


def test_the_first_document_that_no_rule_drops_stays(tmp_path: Path) -> None:
    """A copy that is dropped for its licence does not cause the copy with another licence to be dropped."""
    rows = [{"text": CODE, "license": name} for name in ("gpl-3.0", "gpl-3.0", "mit", "mit")]
    rows.insert(3, {"text": CODE[::-1], "license": "mit"})
    write_jsonl(tmp_path / "c.jsonl", rows)
    out = tmp_path / "out"
    changes = {"dedup": "near", "license_field": "license", "licenses": "mit", "part_bytes": 10**7}
    write_shards.main(_arguments(tmp_path / "c.jsonl", out, **changes))
    first = {rule: of_rule[0]["source"].rpartition(":")[2] for rule, of_rule in _report(out)["samples"].items()}
    assert first == {"license": "1", "duplicate": "5"}
    assert _report(out)["kept"]["documents"] == 2


def test_a_file_that_contains_a_benchmark_problem_is_dropped(corpus: Path, tmp_path: Path) -> None:
    problem = HUMANEVAL[0]
    (corpus / "leak.py").write_text(CODE + problem["prompt"] + problem["canonical_solution"])
    benchmark = write_jsonl(tmp_path / "own_eval.jsonl", HUMANEVAL)
    out = tmp_path / "out"
    write_shards.main(_arguments(corpus, out, decontaminate=benchmark))
    assert _dropped(out)["contaminated:own_eval"] == ["leak.py"]
    assert json.loads((out / METADATA).read_text())["dropped"]["contaminated:own_eval"] == 1
    write_jsonl(benchmark, HUMANEVAL[:1])
    with pytest.raises(UserError, match="was finished with other arguments: --decontaminate"):
        write_shards.main(_arguments(corpus, out, decontaminate=benchmark))
    benchmark.unlink()
    with pytest.raises(UserError, match=r"--decontaminate .*own_eval\.jsonl cannot be read"):
        write_shards.main(_arguments(corpus, tmp_path / "other", decontaminate=benchmark))
    assert not (tmp_path / "other").exists()


@pytest.fixture
def everything(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """Options that use all of deduplication and filters."""
    benchmark = write_jsonl(tmp_path / "own_eval.jsonl", HUMANEVAL)
    (corpus / "leak.py").write_text(CODE[:9000] + HUMANEVAL[0]["prompt"])
    return {"dedup": "near", "filters": "starcoder", "decontaminate": benchmark}


def test_any_number_of_workers_and_a_kill_in_the_survey_give_the_same_bytes(
    corpus: Path, tmp_path: Path, everything: dict[str, Any]
) -> None:
    write_shards.main(_arguments(corpus, tmp_path / "one", **everything))
    reference = files_of(tmp_path / "one")
    write_shards.main(_arguments(corpus, tmp_path / "two", num_workers=2, **everything))
    assert files_of(tmp_path / "two") == reference

    out = tmp_path / "killed"
    at = "data_prep.dedup.survey:written_whole"  # of the second survey
    hold = Hold(command="data_prep.write_shards", at=at, after=1, file=tmp_path / "held")
    kill(held_run(_arguments(corpus, out, **everything), hold))
    assert len(list(out.glob(f"{WORK_FOLDER}/*.survey.npz"))) == 1
    assert not list(out.glob("train/part-*"))  # no part is written before all are surveyed
    assert not (out / METADATA).exists()
    write_shards.main(_arguments(corpus, out, **everything))
    assert files_of(out) == reference


def killed(*_: object, **__: object) -> None:
    """Stand for a kill; a function of this module, so that workers can import it."""
    raise RuntimeError("killed")


def test_finished_surveys_are_not_made_again(
    corpus: Path, tmp_path: Path, everything: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards.main(_arguments(corpus, tmp_path / "one", **everything))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(write_parts, "decide", killed)
        with pytest.raises(RuntimeError, match="killed"):
            write_shards.main(_arguments(corpus, out, **everything))
    assert len(list(out.glob(f"{WORK_FOLDER}/*.survey.npz"))) >= 4
    with monkeypatch.context() as patch:
        patch.setattr(write_parts, "survey_part", killed)
        write_shards.main(_arguments(corpus, out, **everything))
    assert files_of(out) == files_of(tmp_path / "one")


def test_records_that_cannot_be_read_are_not_documents(corpus: Path, tmp_path: Path) -> None:
    """Surveys and parts count the same documents, even if reading fails in the middle of a file."""
    rows = "".join(json.dumps({"text": f"number {i} " * 9}) + "\n" for i in range(500)) + '{"text": 1}\nnot JSON\n'
    damaged = gzip.compress(rows.encode(), mtime=0)[:-40]
    (corpus / "damaged.jsonl.gz").write_bytes(damaged)
    (corpus / "f.jsonl").write_text('{"text": 1}\nnot JSON\n{"text": "x = 1"}\n')
    out = tmp_path / "out"
    write_shards.main(_arguments(corpus, out, dedup="near", extensions=".py .jsonl .jsonl.gz"))
    rules = _report(out)["rules"]
    assert {name: rules[name]["documents"] for name in rules if name != "empty"}.items() >= {
        "bad_json": 1,
        "text_not_a_string": 1,
        "corrupt_archive": 1,
        "duplicate": 4,
    }.items()
