"""Drawing tokens and accepting drafts: worked examples, proportions, and greedy decoding as a limit."""

import torch

from pipeline.inference.decoding.sampling import GREEDY, Drafts, Sampling, accept, judge, probabilities, propose, sample
from tests.helpers.decoding import assert_distributed_as


def test_accept_stops_at_the_first_draft_above_its_ratio() -> None:
    q = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]]])
    p = torch.tensor([[[0.25, 0.5, 0.25], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]])
    drafts = torch.tensor([[0, 2]])  # both have p/q = 1/2

    def decide(first: float, second: float) -> tuple[int, list[float]]:
        n_accepted_B, weights_BV = accept(drafts, q, p, uniforms_BL=torch.tensor([[first, second]]))
        return int(n_accepted_B), [round(weight, 6) for weight in weights_BV[0].tolist()]

    assert decide(0.51, 0.0) == (0, [0.0, 0.0, 0.25])  # max(p - q, 0) at the first draft
    assert decide(0.49, 0.51) == (1, [0.0, 0.4, 0.0])  # at the second draft
    assert decide(0.49, 0.49) == (2, [0.3, 0.3, 0.4])  # all accepted: p itself


def test_greedy_judges_like_distributions_on_one_token() -> None:
    ids_BL = torch.tensor([[1, 2], [1, 3], [0, 2]])
    logits_BTV = torch.eye(4)[torch.tensor([[1, 2, 3]] * 3)]
    n_accepted_B, token_B1 = judge(Drafts(ids_BL=ids_BL, probs_BLV=None), logits_BTV, GREEDY)
    assert n_accepted_B.tolist() == [2, 1, 0]
    assert token_B1.tolist() == [[3], [2], [1]]
    uniforms_BL = torch.full((3, 2), 0.9999999)
    by_rule_B, weights_BV = accept(ids_BL, torch.eye(4)[ids_BL], logits_BTV, uniforms_BL=uniforms_BL)
    assert by_rule_B.tolist() == n_accepted_B.tolist()
    assert weights_BV.argmax(-1, keepdim=True).tolist() == token_B1.tolist()


def test_without_drafts_the_token_is_the_models() -> None:
    logits_BTV = torch.tensor([[[0.0, 2.0, 1.0]], [[3.0, 2.0, 1.0]]])
    for sampling in (GREEDY, Sampling(temperature=1e-4)):
        drafts = propose(logits_BTV[:, 1:], sampling)
        assert drafts.ids_BL.shape == (2, 0)
        n_accepted_B, token_B1 = judge(drafts, logits_BTV, sampling)
        assert n_accepted_B.tolist() == [0, 0]
        assert token_B1.tolist() == [[1], [0]]


def test_joined_drafts_are_one_blocks() -> None:
    logits_BLV = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    greedy = Drafts.joined([propose(logits_BLV[:, draft : draft + 1], GREEDY) for draft in range(3)])
    assert greedy.ids_BL.tolist() == logits_BLV.argmax(-1).tolist()
    assert greedy.probs_BLV is None
    sampling = Sampling(temperature=1.0, generator=torch.Generator().manual_seed(1))
    parts = [propose(logits_BLV[:, draft : draft + 1], sampling) for draft in range(3)]
    drawn = Drafts.joined(parts)
    assert drawn.ids_BL.tolist() == torch.cat([part.ids_BL for part in parts], dim=1).tolist()
    torch.testing.assert_close(drawn.probs_BLV, logits_BLV.softmax(-1))


def test_accept_without_drafts_and_without_a_residual() -> None:
    p = torch.tensor([[[0.25, 0.75]]])
    none, weights = accept(torch.empty(1, 0, dtype=torch.int64), p[:, :0], p, uniforms_BL=torch.empty(1, 0))
    assert none.tolist() == [0]
    assert weights.tolist() == [[0.25, 0.75]]
    # rounding can reject although p = q; then the token is drawn from p
    _, weights = accept(torch.tensor([[1]]), p, p[:, [0, 0]], uniforms_BL=torch.ones(1, 1))
    assert weights.tolist() == [[0.25, 0.75]]


def test_probabilities_of_temperature_and_top_p() -> None:
    exact = torch.tensor([[0.1, 0.5, 0.25, 0.15]])
    logits = exact.log() + 3
    torch.testing.assert_close(probabilities(logits, Sampling(temperature=1.0)), exact)
    torch.testing.assert_close(probabilities(logits, Sampling(temperature=0.5)), exact.square() / exact.square().sum())
    for top_p, kept in [(0.4, [1]), (0.51, [1, 2]), (0.74, [1, 2]), (0.76, [1, 2, 3]), (0.95, [0, 1, 2, 3])]:
        expected = torch.zeros_like(exact)
        expected[:, kept] = exact[:, kept] / exact[:, kept].sum()
        torch.testing.assert_close(probabilities(logits, Sampling(temperature=1.0, top_p=top_p)), expected)


def test_sample_draws_in_proportion() -> None:
    weights = torch.tensor([3.0, 0.0, 1.0, 6.0]).expand(40_000, 4)
    drawn = sample(weights, torch.Generator().manual_seed(1))
    assert_distributed_as(torch.tensor([0.3, 0.0, 0.1, 0.6]), drawn.bincount(minlength=4))
