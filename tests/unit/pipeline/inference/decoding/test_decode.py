"""Decoding, compared with a loop without a cache, transformers' generate, exact distributions and counting models."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from pipeline.inference.decoding.blockwise import NotFiniteError
from pipeline.inference.decoding.decode import Decoder, Generation, decode
from pipeline.inference.decoding.sampling import GREEDY, Sampling
from pipeline.model.network import MultiTokenModel
from tests.helpers.decoding import PROMPTS, assert_samples_are_the_models, counting_model
from tests.helpers.references import all_logits, as_transformers_llama, naive_greedy, tiny_model


def run(model: MultiTokenModel, prompts: list[list[int]], **changes: object) -> Generation:
    settings = {"n_heads_used": 1, "max_gen_len": 20, "stop_ids": (), **changes}
    decoder = Decoder(model, max_batch_size=len(prompts), max_seq_len=int(str(settings.pop("max_seq_len", 64))))
    return decode(decoder, prompts, **settings)  # type: ignore[arg-type]


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


def test_decoder_forward_accepts_a_position_for_each_sequence() -> None:
    model = tiny_model()
    tokens = torch.randint(97, (2, 10), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(model, max_batch_size=2, max_seq_len=16)
    decoder.forward(tokens[:, :6], 0, return_all_heads=True)
    block = torch.stack(
        (tokens[0, 3:6], tokens[1, 6:9])
    )  # the first sequence overwrites cached tokens with the same ones
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


def test_tokens_and_heads_that_do_not_fit_are_refused() -> None:
    decoder = Decoder(tiny_model(), max_batch_size=1, max_seq_len=8, n_heads_used=2)
    with pytest.raises(ValueError, match="2 sequences up to position 1 do not fit"):
        decoder.forward(torch.zeros(2, 1, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="1 sequences up to position 10 do not fit"):
        decoder.forward(torch.zeros(1, 5, dtype=torch.int64), 5)
    with pytest.raises(ValueError, match="3 heads asked for, but the decoder has caches for 2"):
        decoder.hidden(torch.zeros(1, 1, dtype=torch.int64), 0, n_heads=3)


@pytest.mark.parametrize("prompt", [[], list(range(8)), list(range(9))], ids=len)
def test_prompts_that_leave_no_room_are_refused(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match=f"prompt 1 has {len(prompt)} tokens; 1 to 7 leave room for one more"):
        run(tiny_model(), [[1], prompt], max_seq_len=8)


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
    n_forwards = 12 // tokens_per_forward
    assert generation.forwards == [n_forwards] * 2
    assert generation.tokens_per_forward == [tokens_per_forward] * 2
    stood = [n_forwards if draft < tokens_per_forward else 0 for draft in (1, 2, 3)]
    assert generation.accepted == [stood] * 2


@pytest.mark.parametrize("n_heads_used", [1, 2, 3, 4])
def test_heads_used_bound_the_tokens_per_forward(n_heads_used: int) -> None:
    generation = run(counting_model([1, 2, 3, 4]), [[3]], n_heads_used=n_heads_used, max_gen_len=13)
    assert generation.tokens_per_forward == [n_heads_used]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        # few rows: all heads at every position, so that the matrix is read once
        ([[3]], [(1, 1, 4), (1, 4, 4), (1, 4, 4)]),
        # more rows: head 0 at each position of a block (the last of a prompt), the others where the next block begins
        ([[3], [7, 8, 9]], [(2, 1, 4), (2, 4, 1), (2, 3), (2, 4, 1)]),
    ],
)
def test_one_step_is_one_forward_over_one_block(
    prompts: list[list[int]], expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    unembedded: list[tuple[int, ...]] = []
    hidden, unembed = Decoder.hidden, Decoder.unembed

    def counted_hidden(self: Decoder, tokens_BT: Tensor, *args: object, **kwargs: object) -> Tensor:
        shapes.append(tuple(tokens_BT.shape))
        return hidden(self, tokens_BT, *args, **kwargs)  # type: ignore[arg-type]

    def counted_unembed(self: Decoder, hidden_ND: Tensor, *, first_head: int) -> Tensor:
        unembedded.append(tuple(hidden_ND.shape[:-1]))
        return unembed(self, hidden_ND, first_head=first_head)

    monkeypatch.setattr(Decoder, "hidden", counted_hidden)
    monkeypatch.setattr(Decoder, "unembed", counted_unembed)
    run(counting_model([1, 2, 3, 4]), prompts, n_heads_used=4, max_gen_len=9)
    # the prompts, then blocks of the newest token and three drafts
    assert shapes == [(len(prompts), max(map(len, prompts))), (len(prompts), 4), (len(prompts), 4)]
    assert unembedded == expected


def test_each_head_is_unembedded_by_one_matrix_product() -> None:
    model = tiny_model().requires_grad_(
        False
    )  # as loaded for decoding; matmul does not use batches for weights with gradients
    decoder = Decoder(model, max_batch_size=2, max_seq_len=8)
    hidden_BTND = decoder.hidden(torch.ones(2, 4, dtype=torch.int64), 0, n_heads=4)
    with profile() as plain, torch.inference_mode():
        logits = model.heads.output(hidden_BTND[:, :, :1])
    with profile() as ours:
        torch.testing.assert_close(decoder.unembed(hidden_BTND[:, :, :1], first_head=0), logits)
    operators = [{event.key for event in run.key_averages()} for run in (plain, ours)]
    assert "aten::bmm" in operators[0], "matmul treats strided inputs well now: contiguous() in unembed can go"
    assert "aten::mm" in operators[1]
    assert "aten::bmm" not in operators[1]


@pytest.mark.parametrize("n_heads_used", [1, 4])
def test_eos_ends_one_sequence_while_others_continue(n_heads_used: int) -> None:
    model = counting_model([1, 2, 3, 4])
    generation = run(model, [[3], [18], [9], [19]], n_heads_used=n_heads_used, stop_ids={20}, max_gen_len=14)
    expected = [list(range(4, 18)), [19, 20], list(range(10, 21)), [20]]
    assert generation.token_ids == expected
    # every draft was accepted, before and after other sequences left the batch
    assert generation.forwards == [-(-(len(token_ids) - 1) // n_heads_used) for token_ids in expected]
    assert generation.tokens_per_forward[3] == 1.0  # its only token came from the prompt's forward


@pytest.mark.parametrize("n_heads_used", [1, 3, 4])
def test_max_seq_len_and_max_gen_len_bound_every_sequence(n_heads_used: int) -> None:
    model = counting_model([1, 2, 3, 4])
    generation = run(model, [[3], [7, 8, 9]], n_heads_used=n_heads_used, max_seq_len=8, max_gen_len=100)
    assert generation.token_ids == [list(range(4, 11)), list(range(10, 15))]
    generation = run(model, [[3], [7, 8, 9]], n_heads_used=n_heads_used, max_seq_len=8, max_gen_len=6)
    assert [len(token_ids) for token_ids in generation.token_ids] == [6, 5]
    assert all(generation.seconds > 0 and rate > 0 for rate in generation.tokens_per_s)


def test_on_tokens_is_called_as_tokens_come() -> None:
    told: list[tuple[int, list[int]]] = []
    generation = run(
        counting_model([1, 2]), [[3], [18]], n_heads_used=2, max_gen_len=5, stop_ids={20},
        on_tokens=lambda sequence, token_ids: told.append((sequence, token_ids)),
    )  # fmt: skip
    assert told == [(0, [4]), (1, [19]), (0, [5, 6]), (1, [20]), (0, [7, 8])]
    assert generation.token_ids == [[4, 5, 6, 7, 8], [19, 20]]


@pytest.mark.parametrize("n_heads_used", [1, 2])
def test_on_tokens_can_end_a_sequence(n_heads_used: int) -> None:
    generation = run(
        counting_model([1, 2]), [[3], [18], [0]], n_heads_used=n_heads_used, max_gen_len=7, stop_ids={22, 30},
        on_tokens=lambda sequence, token_ids: sequence == 0 and token_ids[-1] >= 6,
    )  # fmt: skip
    assert generation.token_ids == [[4, 5, 6], [19, 20, 21, 22], [1, 2, 3, 4, 5, 6, 7]]
    assert generation.forwards == [-(-(len(token_ids) - 1) // n_heads_used) for token_ids in generation.token_ids]


@pytest.mark.parametrize("n_heads_used", [1, 2, 3])
@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}], ids=str)
def test_speculatively_sampled_tokens_have_the_models_distribution(
    n_heads_used: int, sampling: dict[str, float]
) -> None:
    assert_samples_are_the_models(
        lambda model, prompts, n_tokens, settings: run(
            model, prompts, n_heads_used=n_heads_used, max_gen_len=n_tokens, sampling=settings, max_seq_len=16
        ),
        sampling,
    )


def poisoned_after(token_id: int, *, head: int) -> MultiTokenModel:
    """Return a counting model of which one head overflows for one token."""
    model = counting_model([1, 2, 3, 4])
    layers: list[Any] = [*model.trunk.layers, *model.heads.layers]
    layers[-4 + head].feed_forward.w1.weight[:, token_id] = 1e38
    return model


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.01}], ids=str)
@pytest.mark.parametrize("n_heads_used", [1, 2, 4])
def test_logits_that_are_not_finite_are_an_error_that_names_them(n_heads_used: int, sampling: dict[str, Any]) -> None:
    settings = replace(GREEDY, **sampling)
    with pytest.raises(NotFiniteError) as caught:
        run(poisoned_after(11, head=0), [[20, 21], [8]], n_heads_used=n_heads_used, sampling=settings)
    assert (caught.value.sequence, caught.value.n_tokens, caught.value.draft) == (1, 4, 0)  # 8, 9, 10, 11
    # a sequence that ends before it is whole
    generation = run(
        poisoned_after(11, head=0), [[20, 21], [8]], n_heads_used=n_heads_used, sampling=settings, max_gen_len=3
    )
    assert generation.token_ids == [[22, 23, 24], [9, 10, 11]]


def test_drafts_that_are_not_finite_are_named() -> None:
    with pytest.raises(NotFiniteError) as caught:
        run(poisoned_after(8, head=2), [[20, 21], [8]], n_heads_used=4)
    assert (caught.value.sequence, caught.value.draft) == (1, 2)
    assert run(poisoned_after(8, head=2), [[8]], n_heads_used=2).token_ids


def test_infinite_logits_are_an_error() -> None:
    model = counting_model([1, 2])
    model.heads.output.weight[3] = 3e38
    with pytest.raises(NotFiniteError):
        run(model, [[1]], n_heads_used=1, max_gen_len=4)


@pytest.mark.parametrize("n_heads_used", [1, 4])
def test_a_sampled_sequence_does_not_depend_on_the_batch(n_heads_used: int) -> None:
    model = tiny_model()
    together = run(
        model, PROMPTS, n_heads_used=n_heads_used, sampling=Sampling(temperature=1.0, seeds=[4, 5, 6, 7]), stop_ids={9}
    )
    alone = [
        run(model, [prompt], n_heads_used=n_heads_used, sampling=Sampling(temperature=1.0, seeds=[seed]), stop_ids={9})
        for seed, prompt in enumerate(PROMPTS, start=4)
    ]
    assert together.token_ids == [generation.token_ids[0] for generation in alone]
