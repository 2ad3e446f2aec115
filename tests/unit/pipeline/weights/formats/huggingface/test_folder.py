"""Hugging Face's format, compared with transformers in both directions, and the folders that are refused."""

import dataclasses
import glob
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import import_utils

from common.command_line import UserError
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.huggingface import folder as huggingface
from pipeline.weights.formats.huggingface.folder import open_folder
from pipeline.weights.formats.huggingface.llama import next_token_chain
from pipeline.weights.formats.stored_model import load_model
from tests.helpers.exports import exported, in_memory
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


def test_further_heads_are_kept_in_a_folder_of_their_own(tmp_path: Path) -> None:
    model = tiny_model()
    folder = exported(tmp_path / "out", model, to="hf")
    loaded = load_model(open_folder(folder))
    assert torch.equal(all_logits(loaded, TOKENS), all_logits(model, TOKENS))
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1


def names_in(files: list[Path]) -> set[str]:
    names: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB"])
def test_whoever_takes_every_safetensors_file_gets_a_llama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_shard_size: str
) -> None:
    """As vLLM does: it takes all of the folder if there is no index, and refuses a weight that it does not know."""
    monkeypatch.setattr(huggingface, "MAX_SHARD_SIZE", max_shard_size)
    folder = exported(tmp_path / "out", tiny_model(head_order="anticausal", replicated_unembedding=True), to="hf")
    llama = LlamaForCausalLM.from_pretrained(folder)
    assert names_in([Path(path) for path in glob.glob(str(folder / "*.safetensors"))]) == set(llama.state_dict())
    folder = exported(tmp_path / "parallel", tiny_model(), to="hf")
    llama = LlamaForCausalLM.from_pretrained(folder)
    assert names_in([Path(path) for path in glob.glob(str(folder / "*.safetensors"))]) == set(llama.state_dict())
    assert len(list((folder / "extra_heads").glob("*.safetensors"))) == (1 if max_shard_size == "5GB" else 4)


def test_exports_of_earlier_versions_are_read(tmp_path: Path) -> None:
    model = tiny_model()
    folder = exported(tmp_path / "out", model, to="hf")
    (folder / "extra_heads" / "model.safetensors").rename(folder / "extra_heads.safetensors")
    (folder / "extra_heads").rmdir()
    assert torch.equal(all_logits(load_model(open_folder(folder)), TOKENS), all_logits(model, TOKENS))


def test_after_transformers_saved_it_the_advice_is_one_line(tmp_path: Path) -> None:
    """transformers keeps our section of config.json, and knows nothing of the further heads."""
    model = tiny_model()
    folder = exported(tmp_path / "out", model, to="hf")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="describes 4 heads, but the further heads' weights are not there") as error:
        open_folder(tmp_path / "saved")
    assert "\n" not in str(error.value)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    del config["multi_token_prediction"]
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    loaded = load_model(open_folder(tmp_path / "saved"))
    torch.testing.assert_close(
        all_logits(loaded, TOKENS)[:, :, 0], all_logits(model, TOKENS)[:, :, 0], rtol=0, atol=1e-5
    )


def test_rotary_frequencies_beside_the_weights_are_checked_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(n_future_tokens=1)
    folder = exported(tmp_path / "out", model, to="hf")
    weights = load_file(folder / "model.safetensors")
    frequencies = 1 / 10_000 ** (torch.arange(0, 8, 2) / 8)
    for factor, is_refused in ((1.0, False), (0.5, True)):
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        save_file({**weights, name: (factor * frequencies).half()}, folder / "model.safetensors")
        if is_refused:
            with pytest.raises(UserError, match="inv_freq holds other rotary frequencies than rope_theta=10000"):
                open_folder(folder)
        else:
            assert torch.equal(all_logits(load_model(open_folder(folder)), TOKENS), all_logits(model, TOKENS))
    assert "holds rotary frequencies, which follow from rope_theta" in capsys.readouterr().err


def test_the_length_of_the_training_sequences_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = dataclasses.replace(in_memory(tiny_model()), seq_len=64)
    for name, source in (("known", stored), ("unknown", dataclasses.replace(stored, seq_len=None))):
        (tmp_path / name).mkdir()
        huggingface.write_folder(source, tmp_path / name, ExportOptions())
    assert json.loads((tmp_path / "known" / "config.json").read_text())["max_position_embeddings"] == 64
    assert "max_position_embeddings" not in json.loads((tmp_path / "unknown" / "config.json").read_text())
    assert open_folder(tmp_path / "known").seq_len == 64


@pytest.mark.parametrize("place", ["model.safetensors", "extra_heads/model.safetensors"])
def test_weights_that_do_not_fit_the_precision_are_refused(tmp_path: Path, place: str) -> None:
    model = tiny_model()
    name = f"heads.layers.{int(place.startswith('extra'))}.attention.wo.weight"
    weight = dict(model.named_parameters())[name]
    weight.data[0, :2] = 1e5
    with pytest.raises(UserError, match=r"memory cannot be converted: '.*o_proj\.weight' has 2 values that float16"):
        exported(tmp_path / "fp16", model, to="hf", options=ExportOptions(dtype=torch.float16))
    exported(tmp_path / "bf16", model, to="hf", options=ExportOptions(dtype=torch.bfloat16))


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
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing key 'model\.layers\.3\.self_attn\.q_proj\.weight'"):
        open_folder(folder)
