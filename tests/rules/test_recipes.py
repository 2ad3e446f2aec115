"""Every shipped recipe loads and has the stated size, and the paper's runs have the numbers of its Table S13."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from pipeline.config.ranks import batch_problems
from pipeline.config.recipe import load_config
from pipeline.config.schema import Config
from pipeline.model.formulas import parameter_count
from pipeline.model.network import MultiTokenModel
from pipeline.planning.alternatives import alternatives, setup_of
from pipeline.planning.clusters import GPUS, Assumptions, Cluster
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "pipeline" / "recipes").glob("*.yaml"))
PAPER_RANKS = 64
SLOWER = 0.01  # share of the speed of the plan's best way that a recipe may give up for a simpler JSON

TABLE_S13 = {  # recipe: batch in 2^20 tokens, steps, billions of tokens, warm-up, context
    "0.3B_91B": (8, 10_850, 91.0, 1000, 4096),
    "0.6B_91B": (8, 10_850, 91.0, 1000, 4096),
    "1.3B_91B": (8, 10_850, 91.0, 1000, 4096),
    "3B_91B": (8, 10_850, 91.0, 1000, 4096),
    "13B_200B": (8, 25_000, 209.7, 1000, 4096),
    "7B_200B": (8, 25_000, 209.7, 2000, 4096),
    "7B_500B": (7, 68_570, 503.3, 2000, 4096),
    "7B_1T": (7, 136_240, 1000.0, 2000, 4096),
    "7B_314B_bytes": (12, 25_000, 314.6, 2000, 8192),
}
PARAMETERS = {  # Table S14's shapes with Llama 2's block: recipe -> parameters (32,000 tokens; 258 for bytes)
    "0.3B_91B": 296_784_896,
    "0.6B_91B": 630_526_720,
    "1.3B_91B": 1_364_297_728,
    "3B_91B": 3_018_775_040,
    "13B_200B": 13_015_864_320,
    "7B_200B": 6_738_415_616,
    "7B_500B": 6_738_415_616,
    "7B_1T": 6_738_415_616,
    "7B_314B_bytes": 6_738_415_616 - 2 * (32_000 - 258) * 4096,
}

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
paper_recipe = pytest.mark.parametrize("name", TABLE_S13)


def load(name: str) -> Config:
    return load_config(REPOSITORY / "pipeline" / "recipes" / f"{name}.yaml")


def header(recipe: Path) -> str:
    """Return the comment that opens a recipe, without its marks."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    n_comments = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:n_comments])


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_only_the_papers_runs_and_the_demos_have_recipes() -> None:
    assert {recipe.stem for recipe in RECIPES} == {*TABLE_S13, "demo", "demo_bytes"}


@every_recipe
@pytest.mark.parametrize("overrides", [[], ["model.n_future_tokens=1"]], ids=["as_it_is", "baseline"])
def test_a_recipe_loads_and_its_model_builds(recipe: Path, overrides: list[str]) -> None:
    config = load_config(recipe, overrides)
    assert config.run.name == recipe.stem
    with torch.device("meta"):
        model = MultiTokenModel(config.model)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert n_parameters == parameter_count(config.model)
    own_unembeddings = (config.model.n_unembeddings - 1) * config.model.vocab_size * config.model.dim
    assert n_parameters - own_unembeddings == PARAMETERS.get(recipe.stem, n_parameters - own_unembeddings)
    assert (own_unembeddings > 0) == ("bytes" in recipe.stem and not overrides)
    assert len(model.heads.layers) == (1 if overrides else config.model.n_future_tokens)
    assert len(model.trunk.layers) + len(model.heads.layers) == config.model.n_layers


@paper_recipe
def test_a_paper_recipe_has_the_numbers_of_its_row_in_table_s13(name: str) -> None:
    config = load(name)
    batch, steps, billions, warmup_steps, context = TABLE_S13[name]
    assert config.train.batch_tokens == batch * 2**20
    assert config.total_steps == steps
    assert config.train.total_tokens == batch * 2**20 * steps
    assert round(config.train.total_tokens / 1e9, 1) == billions
    assert config.optim.warmup_steps == warmup_steps
    assert config.data.seq_len == context
    optim = config.optim
    assert (optim.lr, optim.min_lr_ratio) == (3e-4, 0.03)
    assert (optim.beta1, optim.beta2, optim.weight_decay, optim.clip) == (0.9, 0.95, 0.1, 1.0)


@paper_recipe
def test_a_paper_recipe_has_the_papers_heads_and_tokens(name: str) -> None:
    model = load(name).model
    is_bytes = name.endswith("bytes")
    assert model.n_future_tokens == (8 if is_bytes else 4)
    assert model.vocab_size == (258 if is_bytes else 32_000)
    assert name.startswith(f"{model.size}_")


@every_recipe
def test_the_headers_batch_arithmetic_matches_the_config(recipe: Path) -> None:
    config = load_config(recipe)
    match = re.search(
        r"batch +(.+?) (?:tokens|bytes) = (\d+) ranks x (\d+) micro batch(?:es)? x (\d+) sequences? x (\d+) "
        r"(?:tokens|bytes); ([\d,]+) steps",
        header(recipe),
    )
    assert match is not None, header(recipe)
    batch, ranks, accumulation, micro_batch_size, seq_len, steps = match.groups()
    mebi = re.fullmatch(r"(\d+) x 2\^20", batch)
    assert config.train.batch_tokens == (int(mebi[1]) * 2**20 if mebi else number(batch))
    assert batch_problems(config, data_ranks=int(ranks)) == []
    assert config.accumulation_steps(int(ranks)) == int(accumulation)
    assert config.train.micro_batch_size == int(micro_batch_size)
    assert config.data.seq_len == int(seq_len)
    assert config.total_steps == number(steps)
    if recipe.stem in TABLE_S13:
        assert int(ranks) == PAPER_RANKS


@paper_recipe
@pytest.mark.parametrize("overrides", [[], ["model.n_future_tokens=1"]], ids=["as_it_is", "baseline"])
def test_a_paper_recipe_is_about_as_fast_as_the_plans_best_way_on_its_hardware(name: str, overrides: list[str]) -> None:
    path = REPOSITORY / "pipeline" / "recipes" / f"{name}.yaml"
    hardware = re.search(r"hardware +(\d+) GPUs of (\d+) GB \((\d+) nodes with (\d+) GPUs\)", header(path))
    promised = re.search(r"plan +([\d,]+) tokens/s on H100, ([\d.]+) GB on each", header(path))
    (json,) = re.findall(r"--deepspeed_config (\S+)", header(path))
    assert hardware is not None, header(path)
    assert promised is not None, header(path)
    n_gpus, memory_gb, n_nodes, gpus_per_node = map(int, hardware.groups())
    assert n_gpus == n_nodes * gpus_per_node == PAPER_RANKS
    cluster = Cluster(n_nodes=n_nodes, gpus_per_node=gpus_per_node, gpu=GPUS["h100"], assumed=Assumptions())
    assert cluster.gpu.memory_bytes == memory_gb * 10**9
    config = load_config(path, overrides)
    values, problems = fill_deepspeed_config(load_deepspeed_config(REPOSITORY / json), config, data_ranks=n_gpus)
    assert problems == []
    shipped = setup_of(config, values, cluster, name=json)
    best = alternatives(config, values, cluster)[0]
    assert shipped.fits
    assert shipped.tokens_per_s >= (1 - SLOWER) * best.tokens_per_s, best
    if not overrides:
        found = (f"{shipped.tokens_per_s:,.0f}", f"{shipped.memory.device / 1e9:.1f}")
        assert promised.groups() == found


@every_recipe
def test_the_headers_command_exists(recipe: Path) -> None:
    text = header(recipe)
    if "make demo" in text:
        text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert f"--config {recipe.relative_to(REPOSITORY)}" in text
    (named,) = re.findall(r"--deepspeed_config (\S+)", text)
    values = load_deepspeed_config(REPOSITORY / named)
    assert fill_deepspeed_config(values, load_config(recipe), data_ranks=2)[1] == []


@every_recipe
def test_a_recipe_lists_only_deviations_and_its_own_budget(recipe: Path) -> None:
    """A field that repeats a default is left out, unless it is essential to read the recipe."""
    essential = {("model", "n_future_tokens"), ("data", "seq_len"), ("train", "batch_tokens"), ("log", "every_steps")}
    essential |= {("train", "micro_batch_size"), ("optim", "warmup_steps")}
    defaults = Config().as_dict()
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    repeated = {
        (section, field)
        for section, fields in given.items()
        for field, value in fields.items()
        if defaults[section][field] == value
    }
    assert repeated <= essential
