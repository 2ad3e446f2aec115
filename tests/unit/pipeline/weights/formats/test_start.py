"""Starting a run from weights with more heads or fewer; weights and tokenizers that do not fit are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from pipeline.model.network import MultiTokenModel, initialise
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.start import check_start, fill, starting_weights
from pipeline.weights.formats.stored_model import StoredModel
from tests.helpers.exports import exported, in_memory, write_checkpoint
from tests.helpers.references import all_logits, every_cut, tiny_config, tiny_model

TOKENS = torch.arange(20).view(2, 10)


def started(stored: StoredModel, *, new_heads: str = "copy", **fields: Any) -> MultiTokenModel:
    """Return a model that was initialised with seed 2 and then filled from `stored`."""
    model = tiny_model(seed=2, **fields)
    check_start(stored, model.config)
    fill(model, stored, new_heads=new_heads)
    return model


def test_the_same_architecture_starts_as_the_same_model() -> None:
    assert torch.equal(all_logits(started(in_memory(tiny_model())), TOKENS), all_logits(tiny_model(), TOKENS))


@pytest.mark.parametrize("replicated", [True, False])
def test_fewer_heads_drop_the_further_ones(replicated: bool) -> None:
    """Like the paper's finetuning with n' = 1: the trunk keeps its length, so the model has fewer layers."""
    source = tiny_model(n_layers=6, n_future_tokens=4, replicated_unembedding=replicated)
    for n_heads in (1, 2):
        model = started(
            in_memory(source), n_layers=2 + n_heads, n_future_tokens=n_heads, replicated_unembedding=replicated
        )
        assert torch.equal(all_logits(model, TOKENS), all_logits(source, TOKENS)[:, :, :n_heads])


@pytest.mark.parametrize("shape", [{"n_layers": 8}, {"n_layers": 5, "shorten_trunk": False}])
def test_new_heads_start_as_copies_of_the_next_token_head(shape: dict[str, Any]) -> None:
    source = tiny_model(n_layers=5, n_future_tokens=1)
    logits = all_logits(started(in_memory(source), n_future_tokens=4, **shape), TOKENS)
    for head in range(4):
        assert torch.equal(logits[:, :, head], all_logits(source, TOKENS)[:, :, 0])


def test_new_heads_start_fresh_if_asked() -> None:
    source, untouched = tiny_model(n_layers=4, n_future_tokens=2), tiny_model(seed=2)
    model = started(in_memory(source), new_heads="fresh", n_layers=6, n_future_tokens=4)
    assert torch.equal(all_logits(model, TOKENS)[:, :, :2], all_logits(source, TOKENS))
    for head in (2, 3):
        for weight, expected in zip(
            model.heads.layers[head].parameters(), untouched.heads.layers[head].parameters(), strict=True
        ):
            assert torch.equal(weight, expected)


@pytest.mark.parametrize("new_heads", ["copy", "fresh"])
def test_new_replicated_unembeddings_follow_their_heads(new_heads: str) -> None:
    source = tiny_model(n_layers=4, n_future_tokens=2, replicated_unembedding=True)
    model = started(in_memory(source), new_heads=new_heads, n_layers=5, n_future_tokens=3, replicated_unembedding=True)
    untouched = tiny_model(seed=2, n_layers=5, n_future_tokens=3, replicated_unembedding=True)
    origin = source.heads.output if new_heads == "copy" else untouched.heads.extra_outputs[1]
    expected = [source.heads.extra_outputs[0], origin]
    for unembedding, other in zip(model.heads.extra_outputs.parameters(), expected, strict=True):
        assert torch.equal(unembedding, next(other.parameters()))


def test_pipeline_stages_take_their_share() -> None:
    source, config = tiny_model(n_layers=5, n_future_tokens=3), tiny_config(n_layers=6, n_future_tokens=4)
    expected = dict(started(in_memory(source), n_layers=6, n_future_tokens=4).named_parameters())
    seen: set[str] = set()
    for share in every_cut(config, 3)[5]:
        stage = MultiTokenModel(config, share=share)
        initialise(stage, seed=2)
        fill(stage, in_memory(source), new_heads="copy")
        for name, weight in stage.named_parameters():
            assert torch.equal(weight, expected[name])
            seen.add(name)
    assert seen == expected.keys()


@pytest.mark.parametrize(
    ("source", "run", "message"),
    [
        ({"vocab_size": 50}, {}, "its vocab_size is 50, and this run's is 97"),
        ({"n_kv_heads": 4}, {}, "its kv_heads is 4, and this run's is 2"),
        ({"head_order": "causal"}, {}, "its head_order is causal, and this run's is parallel"),
        ({"n_layers": 8}, {}, "trunk has 4 layers, and this run's 2; .* model.n_layers=8$"),
        ({}, {"n_future_tokens": 1}, "trunk has 2 layers, and this run's 5; .* model.n_layers=3$"),
        ({"n_future_tokens": 1}, {}, "trunk has 5 layers, and this run's 2; .* model.n_layers=9$"),
    ],
)
def test_architectures_that_do_not_fit_are_refused(source: dict[str, Any], run: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_start(in_memory(tiny_model(**source)), tiny_config(**run))


def test_the_order_of_a_single_head_does_not_matter() -> None:
    check_start(in_memory(tiny_model(n_future_tokens=1, head_order="causal", n_layers=3)), tiny_config())


def test_runs_start_from_any_format(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000007", tiny_model())
    for to in ("meta", "hf", "deepspeed"):
        exported(tmp_path / to, tiny_model(), to=to)
    for name in ("run", "run/checkpoints/step_00000007", "meta", "hf", "deepspeed"):
        source = starting_weights(tiny_config(init_from=str(tmp_path / name)), tokenizer_sha256="")
        assert source.config.n_future_tokens == 4


def test_a_run_does_not_start_with_another_tokenizer(tmp_path: Path, sentencepiece_model: Path) -> None:
    options = ExportOptions(tokenizer=str(sentencepiece_model))
    folder = exported(tmp_path / "meta", tiny_model(vocab_size=512), options=options)
    config = tiny_config(vocab_size=512, init_from=str(folder))
    with pytest.raises(UserError, match=r"is not the tokenizer of data\.shards"):
        starting_weights(config, tokenizer_sha256="0" * 64)
