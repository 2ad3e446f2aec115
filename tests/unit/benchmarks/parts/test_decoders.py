"""All ways to decode use the same model, and forced acceptance holds its rates."""

import pytest
import torch

from benchmarks.parts.decode_times import acceptance
from benchmarks.parts.decoders import (
    ForcedAcceptance,
    as_llama,
    bytes_of_a_step,
    copy_bandwidth,
    our_decodings,
    transformers_decoding,
)
from pipeline.inference.decoding.blockwise import decode_blockwise
from pipeline.inference.decoding.decode import Decoder, HeadDrafter
from tests.helpers.decoding import PROMPTS
from tests.helpers.references import all_logits, naive_greedy, tiny_model


@pytest.mark.parametrize("head_order", ["parallel", "anticausal"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_llama_is_the_same_model(head_order: str, n_kv_heads: int) -> None:
    model = tiny_model(head_order=head_order, n_kv_heads=n_kv_heads)
    tokens = torch.randint(97, (2, 13), generator=torch.Generator().manual_seed(1))
    llama = as_llama(model, max_seq_len=16)
    torch.testing.assert_close(llama(tokens).logits, all_logits(model, tokens)[:, :, 0], atol=2e-5, rtol=1e-4)
    assert llama.lm_head.weight.data_ptr() == model.heads.output.weight.data_ptr()


def test_every_way_gives_the_naive_loops_tokens() -> None:
    model = tiny_model()
    decodings = our_decodings(
        model, max_batch_size=4, max_seq_len=24, exit_layers=[1], draft_lengths=[3], forced_acceptance=None
    )
    decodings["transformers"] = transformers_decoding(model, max_seq_len=24)
    heads = ["autoregressive", "2 heads", "3 heads", "4 heads"]
    assert list(decodings) == [*heads, "LayerSkip, exit 1, drafts 3", "transformers"]
    expected = [naive_greedy(model, prompt, n_tokens=9) for prompt in PROMPTS]
    for decoding in decodings.values():
        assert decoding(PROMPTS, 9).token_ids == expected  # the prompts have four lengths, so transformers pads


@pytest.mark.parametrize(
    ("rates", "n_forwards"),
    [([1.0], 3), ([0.0], 12), ([1.0, 0.0], 6), ([1.0, 1.0, 0.0], 4), ([0.0, 1.0], 12), ([1.0] * 9, 3)],
)
def test_forced_drafts_are_accepted_whatever_they_are(rates: list[float], n_forwards: int) -> None:
    drafter = HeadDrafter(Decoder(tiny_model(), max_batch_size=4, max_seq_len=32), n_heads_used=4)
    forced = ForcedAcceptance(drafter, rates, generator=torch.Generator().manual_seed(1))
    generation = decode_blockwise(forced, PROMPTS, max_gen_len=13, stop_ids=())
    assert generation.forwards == [n_forwards] * 4


def test_forced_rates_hold_after_accepted_drafts() -> None:
    drafter = HeadDrafter(Decoder(tiny_model(), max_batch_size=200, max_seq_len=64), n_heads_used=4)
    forced = ForcedAcceptance(drafter, [0.8, 0.5], generator=torch.Generator().manual_seed(1))
    rates, _ = acceptance([decode_blockwise(forced, [[1]] * 200, max_gen_len=40, stop_ids=())])
    for rate, expected in zip(rates, [0.8, 0.4, 0.2], strict=True):  # of about 3,500 blocks
        assert abs(rate - expected) < 0.04


def test_bytes_of_a_step_are_the_weights_and_caches_of_one_head() -> None:
    model = tiny_model()  # width 32, 2 trunk layers and 4 heads, 4 heads of 8, 2 of keys and values, 97 ids
    config = model.config
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * config.ffn_dim + 2 * 32
    weights = (config.n_trunk_layers + 1) * layer + 32 + 97 * 32
    caches = 5 * 10 * (config.n_trunk_layers + 1) * 2 * 16
    assert bytes_of_a_step(model, batch_size=5, n_cached=10) == 4 * (weights + caches)
    assert bytes_of_a_step(model.bfloat16(), batch_size=5, n_cached=10) == 2 * (weights + caches)
    assert copy_bandwidth(torch.device("cpu")) > 2**20
