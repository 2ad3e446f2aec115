"""Drawing tokens and accepting drafts: worked examples, proportions, and greedy decoding as a limit."""

import torch

from pipeline.inference.decoding.sampling import (
    GREEDY,
    Drafts,
    RandomNumbers,
    Sampling,
    accept,
    judge,
    probabilities,
    propose,
    sample,
)
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
    n_accepted_B, token_B1 = judge(
        Drafts(ids_BL=ids_BL, probs_BLV=None, are_finite_BL=ids_BL >= 0),
        logits_BTV,
        GREEDY,
        uniforms_BT=torch.zeros(3, 3),
    )
    assert n_accepted_B.tolist() == [2, 1, 0]
    assert token_B1.tolist() == [[3], [2], [1]]
    uniforms_BL = torch.full((3, 2), 0.9999999)
    by_rule_B, weights_BV = accept(ids_BL, torch.eye(4)[ids_BL], logits_BTV, uniforms_BL=uniforms_BL)
    assert by_rule_B.tolist() == n_accepted_B.tolist()
    assert weights_BV.argmax(-1, keepdim=True).tolist() == token_B1.tolist()


def test_without_drafts_the_token_is_the_models() -> None:
    """Also at temperatures that fp32 rounds to 0."""
    logits_BTV = torch.tensor([[[0.0, 2.0, 1.0]], [[3.0, 2.0, 1.0]]])
    for sampling in (GREEDY, *(Sampling(temperature=t) for t in (1e-4, 1e-40, 1e-300))):
        drafts = propose(logits_BTV[:, 1:], sampling, uniforms_BL=torch.empty(2, 0))
        assert drafts.ids_BL.shape == (2, 0)
        n_accepted_B, token_B1 = judge(drafts, logits_BTV, sampling, uniforms_BT=torch.rand(2, 1))
        assert n_accepted_B.tolist() == [0, 0]
        assert token_B1.tolist() == [[1], [0]]


def test_joined_drafts_are_one_blocks() -> None:
    logits_BLV = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    uniforms_BL = torch.rand(2, 3, generator=torch.Generator().manual_seed(2))

    def one_by_one(sampling: Sampling) -> list[Drafts]:
        places = [slice(draft, draft + 1) for draft in range(3)]
        return [propose(logits_BLV[:, at], sampling, uniforms_BL=uniforms_BL[:, at]) for at in places]

    greedy = Drafts.joined(one_by_one(GREEDY))
    assert greedy.ids_BL.tolist() == logits_BLV.argmax(-1).tolist()
    assert greedy.probs_BLV is None
    drawn = Drafts.joined(one_by_one(Sampling(temperature=1.0)))
    at_once = propose(logits_BLV, Sampling(temperature=1.0), uniforms_BL=uniforms_BL)
    assert drawn.ids_BL.tolist() == at_once.ids_BL.tolist()
    assert drawn.are_finite_BL.tolist() == [[True] * 3] * 2
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
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 6.0, 0.0]).expand(40_000, 6)
    drawn = sample(weights, torch.rand(40_000, generator=torch.Generator().manual_seed(1)))
    assert_distributed_as(torch.tensor([0.0, 0.3, 0.0, 0.1, 0.6, 0.0]), drawn.bincount(minlength=6))


def test_the_greatest_and_the_least_random_number_choose_ids_with_a_weight() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1e-9, 0.0]).expand(3, 5)
    assert sample(weights, torch.tensor([0.0, 1 - 2**-24, 1.0])).tolist() == [1, 1, 1]
    assert sample(torch.full((1, 5), torch.nan), torch.tensor([0.5])).tolist() == [4]


def test_the_numbers_of_a_sequence_depend_on_its_seed_alone() -> None:
    def steps(seeds: list[int], rows: dict[int, list[int]]) -> list[list[list[float]]]:
        numbers, told = RandomNumbers(seeds, n_per_step=3, device=torch.device("cpu")), []
        for step in range(150):
            if step in rows:
                numbers.keep_rows(rows[step])
            told.append(numbers.next_step().tolist())
        return told

    alone = [step[0] for step in steps([7], {})]
    assert [step[0] for step in steps([7, 8], {})] == alone
    later = steps([5, 7, 9], {70: [1, 2], 100: [0]})
    assert [step[1] for step in later[:70]] + [step[0] for step in later[70:]] == alone
    assert len({number for step in steps([7, 8], {}) for row in step for number in row}) > 890
