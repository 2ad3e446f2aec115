"""Decoding against a loop without a cache, transformers' generate, exact distributions, and models that count."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.decode import Decoder, Generation, decode
from pipeline.model import MultiTokenModel
from pipeline.sampling import GREEDY, Sampling, accept, probabilities, sample
from tests.unit.references import all_logits, as_transformers_llama, naive_greedy, tiny_model

NO_EOS = -1
PROMPTS = [[5, 17, 3, 88], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 61]]


def run(model: MultiTokenModel, prompts: list[list[int]], **changes: object) -> Generation:
    settings = {"n_heads_used": 1, "max_gen_len": 20, "eos_id": NO_EOS, **changes}
    decoder = Decoder(model, max_batch_size=len(prompts), max_seq_len=int(str(settings.pop("max_seq_len", 64))))
    return decode(decoder, prompts, **settings)  # type: ignore[arg-type]


def counting_model(shifts: list[int], *, vocab_size: int = 32) -> MultiTokenModel:
    """Return a model whose head i predicts `token + shifts[i]`, whatever came before: right if shifts[i] is i + 1.

    Embedding and unembedding are the identity, attention adds nothing, and a head's feed-forward layer permutes.
    """
    n_heads = len(shifts)
    config = ModelConfig(
        dim=vocab_size, n_layers=n_heads + 1, n_heads=2, vocab_size=vocab_size, n_future_tokens=n_heads, multiple_of=16
    )
    model = MultiTokenModel(config).eval().requires_grad_(False)
    identity = torch.eye(vocab_size)
    layers: list[Any] = [*model.trunk.layers, *model.heads.layers]
    for layer in layers:
        layer.attention.wo.weight.zero_()
        for weight in (layer.feed_forward.w1.weight, layer.feed_forward.w2.weight, layer.feed_forward.w3.weight):
            weight.zero_()
    for shift, head in zip(shifts, layers[-n_heads:], strict=True):
        head.feed_forward.w1.weight[:vocab_size] = identity
        head.feed_forward.w3.weight[:vocab_size] = identity
        head.feed_forward.w2.weight[:, :vocab_size] = identity.roll(shift, dims=0)
    model.trunk.tok_embeddings.weight.copy_(identity)
    model.heads.output.weight.copy_(identity)
    return model


@pytest.mark.parametrize("n_kv_heads", [4, 1])
def test_decoder_forward_is_the_training_forward(n_kv_heads: int) -> None:
    model = tiny_model(n_kv_heads=n_kv_heads)
    tokens = torch.randint(97, (2, 13), generator=torch.Generator().manual_seed(1))
    expected = all_logits(model, tokens)
    decoder = Decoder(model, max_batch_size=3, max_seq_len=16)
    pieces = [decoder.forward(tokens[:, a:b], a, return_all_heads=True) for a, b in [(0, 7), (7, 8), (8, 13)]]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=2e-5, rtol=1e-4)
    assert decoder.forward(tokens, 0).shape == (2, 13, 1, 97)
    torch.testing.assert_close(decoder.forward(tokens, 0), expected[:, :, :1], atol=2e-5, rtol=1e-4)


def test_decoder_forward_takes_a_position_for_each_sequence() -> None:
    model = tiny_model()
    tokens = torch.randint(97, (2, 10), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(model, max_batch_size=2, max_seq_len=16)
    decoder.forward(tokens[:, :6], 0, return_all_heads=True)
    block = torch.stack((tokens[0, 3:6], tokens[1, 6:9]))  # the first sequence writes again what it has
    logits = decoder.forward(block, [3, 6], return_all_heads=True)
    expected = all_logits(model, tokens)
    torch.testing.assert_close(logits[0], expected[0, 3:6], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], expected[1, 6:9], atol=2e-5, rtol=1e-4)


def test_low_precision_forward_is_close_to_full_precision() -> None:
    model = tiny_model()
    tokens = torch.randint(97, (2, 10), generator=torch.Generator().manual_seed(1))
    expected = all_logits(model, tokens)
    decoder = Decoder(model.to(torch.bfloat16), max_batch_size=2, max_seq_len=16)
    decoder.forward(tokens[:, :6], 0, return_all_heads=True)
    logits = decoder.forward(tokens[:, 6:], [6, 6], return_all_heads=True)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected[:, 6:], atol=0.15, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    decoder = Decoder(tiny_model(), max_batch_size=1, max_seq_len=8, n_heads_used=2)
    with pytest.raises(ValueError, match="2 sequences up to position 1 do not fit"):
        decoder.forward(torch.zeros(2, 1, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="1 sequences up to position 10 do not fit"):
        decoder.forward(torch.zeros(1, 5, dtype=torch.int64), 5)
    with pytest.raises(ValueError, match="3 heads asked of a decoder with caches for 2"):
        decoder.hidden(torch.zeros(1, 1, dtype=torch.int64), 0, n_heads=3)


@pytest.mark.parametrize("n_heads_used", [1, 2, 3, 4])
def test_greedy_equals_the_loop_without_a_cache(n_heads_used: int) -> None:
    model = tiny_model()
    generation = run(model, PROMPTS, n_heads_used=n_heads_used)
    assert generation.token_ids == [naive_greedy(model, prompt, n_tokens=20) for prompt in PROMPTS]


def test_greedy_equals_transformers_generate() -> None:
    model = tiny_model()
    llama = as_transformers_llama(model)
    prompt = torch.tensor(PROMPTS[:1])
    expected = llama.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    for n_heads_used in (1, 4):
        generation = run(model, PROMPTS[:1], n_heads_used=n_heads_used)
        assert generation.token_ids == expected[:, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("n_heads_used", [1, 4])
def test_a_batch_of_different_lengths_equals_one_by_one(n_heads_used: int) -> None:
    model = tiny_model(seed=3)
    together = run(model, PROMPTS, n_heads_used=n_heads_used, max_seq_len=24)
    alone = [run(model, [prompt], n_heads_used=n_heads_used, max_seq_len=24) for prompt in PROMPTS]
    assert together.token_ids == [generation.token_ids[0] for generation in alone]
    assert together.forwards == [generation.forwards[0] for generation in alone]


@pytest.mark.parametrize(
    ("shifts", "tokens_per_forward"),
    [([1, 2, 3, 4], 4), ([1, 3, 3, 4], 1), ([1, 2, 4, 4], 2), ([1, 2, 3, 9], 3)],
    ids=["all right", "second wrong", "third wrong", "fourth wrong"],
)
def test_tokens_per_forward_of_right_and_wrong_heads(shifts: list[int], tokens_per_forward: int) -> None:
    generation = run(counting_model(shifts), [[3], [7, 8, 9]], n_heads_used=4, max_gen_len=13)
    assert generation.token_ids == [list(range(4, 17)), list(range(10, 23))]
    assert generation.forwards == [12 // tokens_per_forward] * 2
    assert generation.tokens_per_forward == [tokens_per_forward] * 2


@pytest.mark.parametrize("n_heads_used", [1, 2, 3, 4])
def test_heads_used_bound_the_tokens_per_forward(n_heads_used: int) -> None:
    generation = run(counting_model([1, 2, 3, 4]), [[3]], n_heads_used=n_heads_used, max_gen_len=13)
    assert generation.tokens_per_forward == [n_heads_used]


def test_one_step_is_one_forward_over_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    unembedded: list[tuple[int, ...]] = []
    hidden, unembed = Decoder.hidden, Decoder.unembed

    def counted_hidden(self: Decoder, tokens_BT: Tensor, *args: object, **kwargs: object) -> Tensor:
        shapes.append(tuple(tokens_BT.shape))
        return hidden(self, tokens_BT, *args, **kwargs)  # type: ignore[arg-type]

    def counted_unembed(self: Decoder, hidden_D: Tensor) -> Tensor:
        unembedded.append(tuple(hidden_D.shape[:-1]))
        return unembed(self, hidden_D)

    monkeypatch.setattr(Decoder, "hidden", counted_hidden)
    monkeypatch.setattr(Decoder, "unembed", counted_unembed)
    run(counting_model([1, 2, 3, 4]), [[3], [7, 8, 9]], n_heads_used=4, max_gen_len=9)
    assert shapes == [(2, 3), (2, 4), (2, 4)]  # the prompts, then newest token and three drafts
    # the next-token head over each block (of the prompt only its end), the others only where the next block begins
    assert unembedded == [(2, 1), (2, 3), (2, 4), (2, 3), (2, 4)]


@pytest.mark.parametrize("n_heads_used", [1, 4])
def test_eos_ends_one_sequence_while_others_go_on(n_heads_used: int) -> None:
    model = counting_model([1, 2, 3, 4])
    generation = run(model, [[3], [18], [9], [19]], n_heads_used=n_heads_used, eos_id=20, max_gen_len=14)
    expected = [list(range(4, 18)), [19, 20], list(range(10, 21)), [20]]
    assert generation.token_ids == expected
    # every draft stood, before and after others left the batch
    assert generation.forwards == [-(-(len(token_ids) - 1) // n_heads_used) for token_ids in expected]
    assert generation.tokens_per_forward[3] == 1.0  # its only token came out of the prompt's forward


@pytest.mark.parametrize("n_heads_used", [1, 3, 4])
def test_max_seq_len_and_max_gen_len_bound_every_sequence(n_heads_used: int) -> None:
    model = counting_model([1, 2, 3, 4])
    generation = run(model, [[3], [7, 8, 9]], n_heads_used=n_heads_used, max_seq_len=8, max_gen_len=100)
    assert generation.token_ids == [list(range(4, 11)), list(range(10, 15))]
    generation = run(model, [[3], [7, 8, 9]], n_heads_used=n_heads_used, max_seq_len=8, max_gen_len=6)
    assert [len(token_ids) for token_ids in generation.token_ids] == [6, 5]
    assert all(generation.seconds > 0 and rate > 0 for rate in generation.tokens_per_s)


def test_tokens_are_told_as_they_come() -> None:
    told: list[tuple[int, list[int]]] = []
    generation = run(
        counting_model([1, 2]), [[3], [18]], n_heads_used=2, max_gen_len=5, eos_id=20,
        on_tokens=lambda sequence, token_ids: told.append((sequence, token_ids)),
    )  # fmt: skip
    assert told == [(0, [4]), (1, [19]), (0, [5, 6]), (1, [20]), (0, [7, 8])]
    assert generation.token_ids == [[4, 5, 6, 7, 8], [19, 20]]


def test_accept_stops_at_the_first_draft_above_its_ratio() -> None:
    q = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]]])
    p = torch.tensor([[[0.25, 0.5, 0.25], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]])
    drafts = torch.tensor([[0, 2]])  # both have p/q = 1/2

    def decide(first: float, second: float) -> tuple[int, list[float]]:
        n_accepted_B, weights_BV = accept(drafts, q, p, uniforms_BT=torch.tensor([[first, second]]))
        return int(n_accepted_B), [round(weight, 6) for weight in weights_BV[0].tolist()]

    assert decide(0.51, 0.0) == (0, [0.0, 0.0, 0.25])  # max(p - q, 0) at the first
    assert decide(0.49, 0.51) == (1, [0.0, 0.4, 0.0])  # at the second
    assert decide(0.49, 0.49) == (2, [0.3, 0.3, 0.4])  # none left: p itself


def test_accept_of_greedy_distributions_is_equality() -> None:
    one_hot = torch.eye(4)
    drafts = torch.tensor([[1, 2], [1, 3], [0, 2]])
    target = one_hot[torch.tensor([[1, 2, 3]] * 3)]
    uniforms = torch.full((3, 2), 0.9999999)
    n_accepted_B, weights_BV = accept(drafts, one_hot[drafts], target, uniforms_BT=uniforms)
    assert n_accepted_B.tolist() == [2, 1, 0]
    assert weights_BV.argmax(-1).tolist() == [3, 2, 1]


def test_accept_without_drafts_and_without_a_residual() -> None:
    p = torch.tensor([[[0.25, 0.75]]])
    none, weights = accept(torch.empty(1, 0, dtype=torch.int64), p[:, :0], p, uniforms_BT=torch.empty(1, 0))
    assert none.tolist() == [0]
    assert weights.tolist() == [[0.25, 0.75]]
    # rounding can reject where p = q; then p itself is left
    _, weights = accept(torch.tensor([[1]]), p, p[:, [0, 0]], uniforms_BT=torch.ones(1, 1))
    assert weights.tolist() == [[0.25, 0.75]]


def test_probabilities_of_temperature_and_top_p() -> None:
    exact = torch.tensor([[0.1, 0.5, 0.25, 0.15]])
    logits = exact.log() + 3
    torch.testing.assert_close(probabilities(logits, Sampling(temperature=1.0)), exact)
    torch.testing.assert_close(probabilities(logits, Sampling(temperature=0.5)), exact.square() / exact.square().sum())
    assert probabilities(logits, GREEDY).tolist() == [[0, 1, 0, 0]]
    for top_p, kept in [(0.4, [1]), (0.51, [1, 2]), (0.74, [1, 2]), (0.76, [1, 2, 3]), (0.95, [0, 1, 2, 3])]:
        expected = torch.zeros_like(exact)
        expected[:, kept] = exact[:, kept] / exact[:, kept].sum()
        torch.testing.assert_close(probabilities(logits, Sampling(temperature=1.0, top_p=top_p)), expected)


def test_sample_draws_in_proportion() -> None:
    weights = torch.tensor([3.0, 0.0, 1.0, 6.0]).expand(40_000, 4)
    drawn = sample(weights, Sampling(temperature=1.0, generator=torch.Generator().manual_seed(1)))
    assert_distributed_as(torch.tensor([0.3, 0.0, 0.1, 0.6]), drawn.bincount(minlength=4))


def assert_distributed_as(probabilities_X: Tensor, counts_X: Tensor) -> None:
    """Pearson's test at five standard deviations; an impossible outcome fails at once."""
    expected_X = probabilities_X * counts_X.sum()
    assert counts_X[probabilities_X == 0].sum() == 0
    common = expected_X >= 5
    pairs = [(counts_X[common], expected_X[common]), (counts_X[~common].sum(), expected_X[~common].sum())]
    statistic = sum(float(((seen - due) ** 2 / due.clamp(min=1e-9)).sum()) for seen, due in pairs)
    freedom = int(common.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("n_heads_used", [1, 2, 3])
@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}], ids=str)
def test_speculative_samples_have_the_models_distribution(n_heads_used: int, sampling: dict[str, float]) -> None:
    vocab_size, n_tokens, n_samples = 5, 4, 20_000
    model = tiny_model(n_future_tokens=3, vocab_size=vocab_size, n_layers=4, seed=5)
    prompt = [1, 3]
    outcomes = torch.tensor(list(itertools.product(range(vocab_size), repeat=n_tokens)))
    prefixes = torch.cat((torch.tensor(prompt).expand(len(outcomes), -1), outcomes), dim=1)
    settings = Sampling(**sampling, generator=torch.Generator().manual_seed(1))
    steps = probabilities(all_logits(model, prefixes)[:, len(prompt) - 1 : -1, 0], settings)
    exact = steps.gather(-1, outcomes.unsqueeze(-1)).squeeze(-1).prod(-1).detach()

    generation = run(
        model, [prompt] * n_samples, n_heads_used=n_heads_used, max_gen_len=n_tokens, sampling=settings, max_seq_len=16
    )
    place = vocab_size ** torch.arange(n_tokens - 1, -1, -1)
    drawn = (torch.tensor(generation.token_ids) * place).sum(-1)
    assert_distributed_as(exact, drawn.bincount(minlength=len(outcomes)))
    if n_heads_used > 1:  # the rule was exercised: some drafts stood, some fell
        assert (n_tokens - 1) / n_heads_used < sum(generation.forwards) / n_samples < n_tokens - 1
