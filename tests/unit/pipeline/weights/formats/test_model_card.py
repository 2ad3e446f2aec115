"""The model card, read by the Hub's own library, from real records of runs and shards."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.config.model import ModelConfig, resolve_model
from pipeline.config.schema import Config, DataConfig
from pipeline.monitoring.environment import environment
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.model_card import model_card, write_model_card
from pipeline.weights.formats.stored_model import Provenance
from tests.conftest import REPOSITORY
from tests.helpers.exports import exported, in_memory
from tests.helpers.references import tiny_model

SEVEN_B = resolve_model(ModelConfig(size="7B"))


@pytest.fixture
def provenance(byte_shards: Path) -> Provenance:
    run = Config(model=SEVEN_B, data=DataConfig(shards="/home/someone/data/shards-of-code", seq_len=32))
    return Provenance(
        step=1234,
        tokens=987_654_321,
        config=run.as_dict(),
        deepspeed_config=json.loads((REPOSITORY / "ds_configs" / "zero2_bf16.json").read_text()),
        environment=environment() | {"git_commit": "0123abc"},
        shards=json.loads((byte_shards / "metadata.json").read_text()),
    )


def card(provenance: Provenance, *, model: ModelConfig = SEVEN_B, **changes: Any) -> str:
    options = ExportOptions(tokenizer="/home/someone/tokenizer.model", first_token="eos")
    arguments: dict[str, Any] = {
        "name": "code-7b",
        "format_name": "hf",
        "options": options,
        "seq_len": 4096,
        "files": {},
    }
    return model_card(model, provenance=provenance, **arguments | changes)


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(("format_name", "library"), [("hf", "transformers"), ("meta", None)])
def test_the_hub_reads_it(provenance: Provenance, format_name: str, library: str | None) -> None:
    data = ModelCard(card(provenance, format_name=format_name)).data.to_dict()
    assert (data["license"], data.get("library_name"), data["pipeline_tag"]) == ("other", library, "text-generation")
    assert "multi-token-prediction" in data["tags"]


def test_the_card_states_the_recorded_facts(provenance: Provenance) -> None:
    text = card(provenance)
    assert provenance.environment is not None
    assert provenance.shards is not None
    counts = provenance.shards["splits"]["train"]
    for title, facts in {
        "Size": ["6,738,415,616", "32, 28 of them in the trunk", "4 (transformer, parallel)", "11,008", "4,096"],
        "Training": ["1,234", "987,654,321", "8,388,608", "0.0003 after 2,000 warm-up steps, then cosine decay to",
                     "9e-06", "bf16", "weight_decay: 0.1", "shards: shards-of-code"],
        "Data": ["| tokenizer | bytes |", f"{counts['documents']:,} documents, {counts['tokens']:,} tokens", "`json`"],
        "Versions": ["| git commit | 0123abc |", provenance.environment["python"],
                     provenance.environment["packages"]["torch"]],
    }.items():  # fmt: skip
        for fact in facts:
            assert fact in section(text, title), title
    assert "unknown" not in text


def test_only_the_last_names_of_paths_are_published(provenance: Provenance, byte_shards: Path) -> None:
    assert provenance.shards is not None
    folder = str(Path(provenance.shards["sources"][0]["path"]).parent)
    for format_name in ("hf", "meta"):
        text = card(provenance, format_name=format_name)
        assert all(path not in text for path in ("/home", "someone", folder, str(byte_shards)))


def test_facts_that_were_not_recorded_are_unknown() -> None:
    text = card(Provenance(), seq_len=None)
    assert section(text, "Training").count("unknown") == 7
    assert "sequence length in training | unknown" in section(text, "Size")
    assert section(text, "Data").strip() == "unknown"
    assert "| git commit | unknown |" in section(text, "Versions")
    assert not any(
        character.isdigit() for title in ("Training", "Data", "Versions") for character in section(text, title)
    )


def test_a_checkpoint_of_no_run_has_a_config_of_the_model_alone(provenance: Provenance) -> None:
    assert provenance.config is not None
    text = card(replace(provenance, config={"model": provenance.config["model"]}))
    assert "| learning rate | unknown |" in section(text, "Training")
    assert "n_layers: 32" in section(text, "Training")


def test_at_most_twenty_sources_are_listed_and_names_may_repeat(provenance: Provenance) -> None:
    assert provenance.shards is not None
    sources = [{"path": f"/data/{i}/src", "files": i, "bytes": 10 * i} for i in range(30)]
    text = section(card(replace(provenance, shards={**provenance.shards, "sources": sources})), "Data")
    assert text.count("| `src` |") == 20
    assert "and 10 more." in text


def test_dropped_documents_and_the_tokenizer_are_named(provenance: Provenance) -> None:
    assert provenance.shards is not None
    tokenizer = {"kind": "sentencepiece", "sha256": "ab" * 32, "bos_id": 1, "eos_id": 2}
    shards = {**provenance.shards, "tokenizer": tokenizer, "dropped": {"duplicate": 4321}}
    text = section(card(replace(provenance, shards=shards)), "Data")
    assert "| dropped: duplicate | 4,321 documents |" in text
    assert f"`{'ab' * 32}`" in text


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [("/x/any.model", "FOLDER/tokenizer.model"), ("bytes", "bytes"), (None, "TOKENIZER")],
)
def test_the_commands_match_the_export(provenance: Provenance, tokenizer: str | None, expected: str) -> None:
    options = ExportOptions(tokenizer=tokenizer, first_token="eos")
    text = section(card(provenance, options=options), "Use")
    assert f"--ckpt_dir FOLDER --tokenizer_path {expected} --prompt" in text
    assert ("from_pretrained" in text) == (tokenizer is not None)
    assert "from_pretrained" not in section(card(provenance, options=options, format_name="meta"), "Use")


def test_a_baseline_is_described_as_one(provenance: Provenance) -> None:
    text = card(provenance, model=replace(SEVEN_B, n_future_tokens=1))
    assert "one prediction head" in text
    assert "multi-token-prediction" not in ModelCard(text).data.to_dict()["tags"]
    assert "further heads" not in text


def test_the_card_of_a_folder_lists_its_files_and_its_code_runs(provenance: Provenance, tmp_path: Path) -> None:
    options = ExportOptions(tokenizer="bytes", first_token="eos")
    source = replace(in_memory(tiny_model(vocab_size=258)), provenance=provenance)
    folder = exported(tmp_path / "out", tiny_model(vocab_size=258), to="hf", options=options)
    for _ in range(2):  # the second card replaces the first, and does not list it
        write_model_card(folder, source, name="tiny", format_name="hf", options=options)
    text = (folder / "README.md").read_text()
    files = section(text, "Files")
    size = (folder / "model.safetensors").stat().st_size
    assert f"| `model.safetensors` | {size:,} bytes, trunk and next-token head |" in files
    assert "`tokenizer.json`" in files
    assert "README" not in files
    code = text.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(folder))
    prologue = "from transformers.utils import import_utils; import_utils._torchvision_available = False\n"
    done = subprocess.run([sys.executable, "-c", prologue + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("import ")


@pytest.mark.parametrize("hostile", ["<script>x<", "<img src=x>", "a|b", "[a](b)", "`x`", "x\n# y", "\x1b[31m"])
def test_nothing_that_others_wrote_is_markup(provenance: Provenance, hostile: str) -> None:
    shards = json.loads(json.dumps(provenance.shards))
    shards["tokenizer"] |= {"kind": hostile, "sha256": hostile}
    shards["sources"][0]["path"] = f"/x/{hostile}"
    shards["dropped"] = {hostile: 3}
    versions = {"git_commit": hostile, "device": hostile, "packages": {hostile: hostile}}
    text = card(replace(provenance, shards=shards, environment=versions), name=hostile)
    outside = re.sub(r"(`+).*?\1", "", text.replace("\\`", ""), flags=re.DOTALL)  # in code nothing is rendered
    assert not re.search(r"<(script|img)|\x1b|(?<!\\)\[a\]|^# y|a\|b", outside.replace("\\|", ""), flags=re.MULTILINE)


def test_a_fence_in_the_settings_does_not_end_their_block(provenance: Provenance) -> None:
    text = card(replace(provenance, config={"model": {"note": "a\n```\n<script>"}}))
    assert "````yaml\n" in text


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, {"lr": "x", "min_lr_ratio": 2, "warmup_steps": []}])
def test_records_of_another_shape_are_unknown_facts(provenance: Provenance, wrong: Any) -> None:
    sections = {"train": wrong or {}, "optim": wrong or {}} if isinstance(wrong, dict | None) else {}
    odd = replace(
        provenance, config=sections, deepspeed_config={"bf16": wrong, "zero_optimization": wrong},
        environment={"packages": wrong},
    )  # fmt: skip
    assert "| learning rate | unknown |" in card(odd)
