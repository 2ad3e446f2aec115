"""Recipes: precedence, every problem in one message, the paper's sizes, and the batch arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from common.command_line import UserError
from pipeline.config.model import MODEL_SIZES, ModelConfig, model_from_dict, resolve_model
from pipeline.config.ranks import batch_problems
from pipeline.config.recipe import load_config, read_config
from pipeline.config.schema import Config, DataConfig, TrainConfig

COMPLETE = """
model: {dim: 64, n_layers: 6, n_heads: 4}
data: {shards: some/shards, seq_len: 32}
train: {total_tokens: 100_000, batch_tokens: 1024, micro_batch_size: 4}
optim: {warmup_steps: 10}
"""


def write_recipe(directory: Path, text: str = COMPLETE) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(recipe: Path, *overrides: str) -> list[str]:
    """Return the problems that one UserError lists."""
    with pytest.raises(UserError) as error:
        load_config(recipe, overrides)
    heading, *lines = str(error.value).split("\n  - ")
    assert heading.startswith(f"recipe {recipe}:")
    return lines or [heading.removeprefix(f"recipe {recipe}: ")]


def test_command_line_beats_recipe_beats_defaults(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, COMPLETE + "checkpoint: {every_steps: 7}\n")
    config = load_config(recipe, ["checkpoint.every_steps=9", "log.every_steps=3"])
    assert config.checkpoint.every_steps == 9
    assert config.log.every_steps == 3  # a section that the recipe does not have
    assert config.optim.warmup_steps == 10  # the recipe's, not the default 2000
    assert config.optim.lr == 3e-4  # the default
    assert load_config(recipe).checkpoint.every_steps == 7


def test_an_override_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    first, second = problems_of(write_recipe(tmp_path), "optim.lr=[", "optim.beta1=2")
    assert first.startswith("the value of 'optim.lr=[' is not YAML: while parsing a flow node")
    assert second.startswith("optim.beta1=2: Input should be less than 1")


def test_the_last_override_of_a_field_counts(tmp_path: Path) -> None:
    assert load_config(write_recipe(tmp_path), ["train.seed=5", "train.seed=6"]).train.seed == 6


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("optim.lr=1e-3", "optim", "lr", 1e-3),  # YAML 1.1 reads it as a string
        ("optim.lr=1.0e-3", "optim", "lr", 1e-3),
        ("train.activation_checkpointing=true", "train", "activation_checkpointing", True),
        ("model.n_kv_heads=null", "model", "n_kv_heads", None),
        ("profile.steps=[10, 12]", "profile", "steps", (10, 12)),
        ("data.shards=/a=b/c d", "data", "shards", "/a=b/c d"),
    ],
)
def test_override_values_are_yaml(tmp_path: Path, override: str, section: str, field: str, value: object) -> None:
    assert getattr(getattr(load_config(write_recipe(tmp_path), [override]), section), field) == value


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        """
modle: {dim: 64}
model: {size: 7B, dim: 64, n_layres: 6, n_kv_heads: 5, n_future_tokens: 40}
data: {shards: some/shards}
train: {seed: many}
optim: {beta1: 2.0}
""",
    )
    problems = problems_of(recipe, "optim.lr=-1", "nonsense", "lr=3", "optim.=3")
    expected = [
        "'nonsense' is not of the form section.field=value",
        "'lr=3' is not of the form section.field=value",
        "'optim.=3' is not of the form section.field=value",
        "unknown key modle; a recipe has run, model, data, train, optim, parallel, checkpoint, log",
        "unknown key model.n_layres; model has size, dim, n_layers, n_heads, ",
        "train.seed='many': Input should be a valid integer",
        "optim.beta1=2.0: Input should be less than 1",
        "optim.lr=-1: Input should be greater than 0",
        "model.size='7B' already sets dim otherwise; give one or the other",
        "model.n_heads=32 must be a multiple of model.n_kv_heads=5",
        "model.n_future_tokens=40 heads need as many layers, but model.n_layers=32 (heads are counted in it)",
        "train.total_tokens is missing: the token budget of the run",
    ]
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), f"{start!r} in {problems}"
    assert len(problems) == len(expected), problems


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_heads=3", "model.dim=64 over model.n_heads=3 must be an even head width"),
        ("model.n_heads=64", "model.dim=64 over model.n_heads=64 must be an even head width"),
        ("model.n_heads=0", "model: give model.size, or all of model.dim, model.n_layers and model.n_heads"),
        ("optim.warmup_steps=98", "optim.warmup_steps=98 must be below the run's 98 steps"),
        ("model.size=6.7B", "model.size='6.7B': Input should be '0.3B', '0.6B', '1.3B', '3B', '7B' or '13B'"),
        ("model.vocab_size=65537", "model.vocab_size=65537: Input should be less than or equal to 65536"),
        ("model.head_order=random", "model.head_order='random': Input should be 'parallel', 'causal' or 'anticausal'"),
        ("parallel.pipeline_stages=0", "parallel.pipeline_stages=0: Input should be greater than 0"),
        ("run.name=../up", "run.name='../up': String should match pattern"),
        ("profile.steps=[3, 2]", "profile.steps=[3, 2] must be the first and the last step to record, of the run's 98"),
        ("profile.steps=[90, 99]", "profile.steps=[90, 99] must be the first and the last step to record, of the"),
        ("profile.steps=[0, 2]", "profile.steps.0=0: Input should be greater than 0"),
        ("profile.steps=[3]", "profile.steps.1=[3]: Field required"),
        ("profile.steps=3", "profile.steps=3: Input should be a valid tuple"),
        ("log.every_steps=0", "log.every_steps=0: Input should be greater than 0"),
        ("log.previews_every_steps=-1", "log.previews_every_steps=-1: Input should be greater than or equal to 0"),
        ("log.grad_norms_every_steps=often", "log.grad_norms_every_steps='often': Input should be a valid integer"),
        ("log.prompts=[]", "log.prompts=[]: Tuple should have at least 1 item after validation"),
        ("log.prompts=def", "log.prompts='def': Input should be a valid tuple"),
        ("log.preview_tokens=0", "log.preview_tokens=0: Input should be greater than 0"),
        ("log.wandb=''", "log.wandb='': String should have at least 1 character"),
        ("data.num_workers=-1", "data.num_workers=-1: Input should be greater than or equal to 0"),
    ],
)
def test_each_single_problem_is_named(tmp_path: Path, override: str, message: str) -> None:
    (problem,) = problems_of(write_recipe(tmp_path), override)
    assert problem.startswith(message)


def test_warmup_one_step_shorter_than_the_run_is_allowed(tmp_path: Path) -> None:
    assert load_config(write_recipe(tmp_path), ["optim.warmup_steps=97"]).total_steps == 98


def test_shards_must_be_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, COMPLETE.replace("shards: some/shards, ", ""))
    assert problems_of(recipe) == ["data.shards is missing: the folder that data_prep.write_shards wrote"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {dim: 64", "is not YAML: while parsing a flow mapping"),
        ("- model\n- data\n", "must map sections (model, data, train, ...) to their fields"),
        ("model: 7B\n", "must map sections (model, data, train, ...) to their fields"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    recipe = write_recipe(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_config(recipe)
    assert str(error.value).startswith(f"recipe {recipe} {message}")
    assert "\n" not in str(error.value)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    missing, not_text = tmp_path / "missing.yaml", tmp_path / "latin.yaml"
    not_text.write_bytes(b"run: {name: caf\xe9}")
    for recipe in (missing, not_text, tmp_path):
        with pytest.raises(UserError, match=rf"^recipe {recipe} cannot be read \(.*\); see pipeline/recipes/$"):
            load_config(recipe)


@pytest.mark.parametrize(
    ("size", "dim", "n_layers", "n_heads", "head_dim", "ffn_dim"),
    [  # paper, Table S14; head and feed-forward widths follow from Llama 2's rules
        ("0.3B", 1024, 18, 16, 64, 2816),
        ("0.6B", 1280, 27, 20, 64, 3584),
        ("1.3B", 2048, 24, 16, 128, 5632),
        ("3B", 2560, 36, 20, 128, 6912),
        ("7B", 4096, 32, 32, 128, 11008),
        ("13B", 5120, 40, 40, 128, 13824),
    ],
)
def test_sizes_are_the_papers(
    tmp_path: Path, size: str, dim: int, n_layers: int, n_heads: int, head_dim: int, ffn_dim: int
) -> None:
    recipe = write_recipe(tmp_path, COMPLETE.replace("dim: 64, n_layers: 6, n_heads: 4", f"size: {size}"))
    model = load_config(recipe).model
    assert (model.dim, model.n_layers, model.n_heads) == (dim, n_layers, n_heads)
    assert (model.head_dim, model.kv_heads, model.ffn_dim) == (head_dim, n_heads, ffn_dim)
    assert model.n_trunk_layers == n_layers - 4


def test_no_size_is_left_out_above() -> None:
    assert list(MODEL_SIZES) == ["0.3B", "0.6B", "1.3B", "3B", "7B", "13B"]


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "ffn_dim"),
    [
        (4096, 256, 1.0, 11008),  # the released 7B's params.json
        (8192, 4096, 1.3, 28672),  # Llama 2 70B's params.json
        (4096, 1024, 1.3, 14336),  # Llama 3 8B's params.json
        (96, 1, None, 256),  # already whole: not rounded up further
        (96, 256, None, 256),
    ],
)
def test_ffn_dim_is_llamas_rule(dim: int, multiple_of: int, multiplier: float | None, ffn_dim: int) -> None:
    assert ModelConfig(dim=dim, multiple_of=multiple_of, ffn_dim_multiplier=multiplier).ffn_dim == ffn_dim


def test_the_resolved_config_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "sized.yaml"
    recipe.write_text("model: {size: 7B}\ndata: {shards: s}\ntrain: {total_tokens: 209715200000}\n")
    config = load_config(recipe)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(yaml.safe_dump(config.as_dict()))
    assert load_config(resolved) == config


def test_model_from_dict_resolves_and_names_its_source() -> None:
    assert model_from_dict({"size": "7B"}) == resolve_model(ModelConfig(size="7B"))
    with pytest.raises(UserError) as error:
        model_from_dict({"dim": "wide", "n_heads": -1}, source="params.json")
    message = str(error.value)
    assert message.startswith("params.json: ")
    assert "dim='wide': Input should be a valid integer" in message
    assert "n_heads=-1: Input should be greater than or equal to 0" in message


def config_of(*, total_tokens: int, batch_tokens: int, micro_batch_size: int, seq_len: int) -> Config:
    return Config(
        data=DataConfig(seq_len=seq_len),
        train=TrainConfig(total_tokens=total_tokens, batch_tokens=batch_tokens, micro_batch_size=micro_batch_size),
    )


@pytest.mark.parametrize(("total_tokens", "steps"), [(1, 1), (1024, 1), (1025, 2), (10_240, 10)])
def test_total_steps_round_up(total_tokens: int, steps: int) -> None:
    config = config_of(total_tokens=total_tokens, batch_tokens=1024, micro_batch_size=1, seq_len=32)
    assert config.total_steps == steps


@pytest.mark.parametrize(("data_ranks", "accumulation"), [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_accumulation_makes_up_the_batch(data_ranks: int, accumulation: int) -> None:
    config = config_of(total_tokens=1, batch_tokens=4096, micro_batch_size=4, seq_len=64)
    assert batch_problems(config, data_ranks=data_ranks) == []
    assert config.accumulation_steps(data_ranks) == accumulation
    assert accumulation * data_ranks * 4 * 64 == 4096


@pytest.mark.parametrize(
    ("batch_tokens", "data_ranks", "nearest"),
    [(4096, 3, 3840), (4000, 1, 4096), (3900, 1, 3840), (4096, 32, 8192), (100, 1, 256)],
)
def test_an_impossible_batch_names_the_nearest_possible_one(batch_tokens: int, data_ranks: int, nearest: int) -> None:
    config = config_of(total_tokens=1, batch_tokens=batch_tokens, micro_batch_size=4, seq_len=64)
    (problem,) = batch_problems(config, data_ranks=data_ranks)
    assert problem == (
        f"train.batch_tokens={batch_tokens} is not a multiple of data.seq_len=64 x train.micro_batch_size=4 x "
        f"{data_ranks} ranks = {256 * data_ranks}; the nearest that is: {nearest}"
    )
    mended = config_of(total_tokens=1, batch_tokens=nearest, micro_batch_size=4, seq_len=64)
    assert batch_problems(mended, data_ranks=data_ranks) == []


def test_the_resolved_config_survives_yaml(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, COMPLETE.replace("dim: 64, n_layers: 6, n_heads: 4", "size: 1.3B"))
    config = load_config(recipe, ["run.name=try", "optim.eps=1e-6", "model.n_kv_heads=4"])
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(config.as_dict()))
    assert values["model"]["dim"] == 2048
    assert TypeAdapter(Config).validate_python(values) == config


def test_run_directory_is_parent_and_name(tmp_path: Path) -> None:
    config = load_config(write_recipe(tmp_path), [f"run.dir={tmp_path}", "run.name=a"])
    assert config.run_dir == tmp_path / "a"
