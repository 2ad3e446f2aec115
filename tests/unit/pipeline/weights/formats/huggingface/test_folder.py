"""Hugging Face's format, compared with transformers in both directions, and the folders that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import import_utils

from common.command_line import UserError
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.huggingface import folder as huggingface
from pipeline.weights.formats.huggingface.folder import open_folder, read_config
from pipeline.weights.formats.huggingface.llama import next_token_chain
from pipeline.weights.formats.stored_model import load_model
from tests.helpers.exports import exported
from tests.helpers.references import all_logits, every_kind_of_heads, naive_greedy, tiny_config, tiny_model

# torchvision's wheel does not import beside a CPU build of torch, and transformers' Llama would import it
import_utils._torchvision_available = False
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402

TOKENS = torch.arange(24).view(2, 12)


@every_kind_of_heads
def test_transformers_loads_trunk_and_next_token_head(tmp_path: Path, heads: dict[str, Any]) -> None:
    model = tiny_model(**heads)
    if heads["head_type"] == "linear":
        with pytest.raises(UserError, match="head_type=linear cannot be a LlamaForCausalLM"):
            exported(tmp_path / "out", model, to="hf")
        return
    exported(tmp_path / "out", model, to="hf")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    llama, report = loaded
    assert type(llama) is LlamaForCausalLM
    assert not any(report.values())
    torch.testing.assert_close(llama(TOKENS).logits, all_logits(model, TOKENS)[:, :, 0], rtol=0, atol=1e-5)


def test_greedy_text_is_the_same(tmp_path: Path) -> None:
    model = tiny_model()
    llama = LlamaForCausalLM.from_pretrained(exported(tmp_path / "out", model, to="hf"))
    prompt = [5, 17, 3]
    continued = llama.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert continued[0, len(prompt) :].tolist() == naive_greedy(model, prompt, n_tokens=40)


def test_further_heads_are_kept_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = tiny_model()
    folder = exported(tmp_path / "out", model, to="hf")
    loaded = load_model(open_folder(folder))
    assert torch.equal(all_logits(loaded, TOKENS), all_logits(model, TOKENS))
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    (folder / "extra_heads.safetensors").unlink()
    with pytest.raises(UserError, match=r"missing key 'extra_heads\.0\.self_attn\.q_proj\.weight'"):
        open_folder(folder)


def test_an_anticausal_chain_ends_in_the_next_token_head() -> None:
    assert next_token_chain(tiny_config(head_order="anticausal")) == [3, 2, 1, 0]
    assert next_token_chain(tiny_config(head_order="causal")) == [0]


@pytest.mark.parametrize(("dim", "width"), [(32, 88), (48, 128), (64, 300), (32, 32)])
def test_a_llama_that_transformers_wrote_loads(tmp_path: Path, dim: int, width: int) -> None:
    """With any feed-forward width, in files of a few kilobytes."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=dim, intermediate_size=width, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=5e5,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = load_model(open_folder(tmp_path))
    assert (model.config.n_future_tokens, model.config.ffn_dim, model.config.rope_theta) == (1, width, 5e5)
    torch.testing.assert_close(all_logits(model, TOKENS)[:, :, 0], llama(TOKENS).logits, rtol=0, atol=1e-5)


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "MAX_SHARD_SIZE", "40KB")
    model = tiny_model()
    folder = exported(tmp_path / "out", model, to="hf")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    llama = LlamaForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(llama(TOKENS).logits, all_logits(model, TOKENS)[:, :, 0], rtol=0, atol=1e-5)
    assert torch.equal(all_logits(load_model(open_folder(folder)), TOKENS), all_logits(model, TOKENS))
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(UserError, match="has no model-00002-of-"):
        open_folder(folder)


def test_ids_of_the_tokenizer_and_the_context_are_in_the_configs(tmp_path: Path, sentencepiece_model: Path) -> None:
    options = ExportOptions(tokenizer=str(sentencepiece_model), dtype=torch.bfloat16)
    folder = exported(tmp_path / "out", tiny_model(vocab_size=512), to="hf", options=options)
    config = json.loads((folder / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["torch_dtype"]) == (1, 2, "bfloat16")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*, and only None is supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True, and only False is supported"),
        ({"model_type": "mistral"}, "model_type='mistral', and only 'llama' is supported"),
        ({"head_dim": 16}, "head_dim=16 is not hidden_size / num_attention_heads"),
        ({"vocab_size": 128_256}, "vocab_size=128256"),
        ({"hidden_size": None}, "missing key 'hidden_size'"),
    ],
)
def test_other_architectures_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4
    ).to_dict()
    values = {key: value for key, value in (values | change).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("contents", [b"", b"not weights at all"])
def test_unreadable_weights_are_reported(tmp_path: Path, contents: bytes) -> None:
    folder = exported(tmp_path / "out", tiny_model(), to="hf")
    (folder / "model.safetensors").write_bytes(contents)
    with pytest.raises(UserError, match="is not a file of weights"):
        open_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        open_folder(folder)


def test_every_weight_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", tiny_model(), to="hf")
    config = json.loads((folder / "config.json").read_text())
    config["multi_token_prediction"]["n_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing key 'model\.layers\.3\.self_attn\.q_proj\.weight'"):
        open_folder(folder)
