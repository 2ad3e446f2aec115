"""The head-sequential loss equals the naive sum in losses and gradients, with the logits of one head at a time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model import formulas
from pipeline.model import loss as loss_module
from pipeline.model.loss import cross_entropy, sum_of_pieces
from pipeline.model.network import MultiTokenModel
from tests.helpers import references
from tests.helpers.references import every_kind_of_heads, plain_losses

B, T, V = 3, 17, 300


def tiny_model(n_future_tokens: int, dtype: torch.dtype, **heads: Any) -> MultiTokenModel:
    return references.tiny_model(n_future_tokens=n_future_tokens, vocab_size=V, n_layers=9, **heads).to(dtype)


def random_batch(n_future_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (B, T), generator=generator)
    return tokens, torch.randint(V, (B, T, n_future_tokens), generator=generator)


def accumulated_gradients(
    model: MultiTokenModel, *, naive: bool, scale: float
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Accumulate two micro batches, each loss scaled; return the per-head losses and all gradients."""
    model.zero_grad()
    all_losses = []
    for seed in (0, 1):
        tokens, targets = random_batch(model.config.n_future_tokens, seed)
        if naive:
            losses = plain_losses(model, tokens, targets)
            total = losses.sum()
        else:
            total, losses = model(tokens, targets)
        (total * scale).backward()
        all_losses.append(losses.detach())
    return all_losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def assert_equals_naive_sum(model: MultiTokenModel, naive_model: MultiTokenModel) -> None:
    expected_losses, expected = accumulated_gradients(naive_model, naive=True, scale=3.7)
    losses, gradients = accumulated_gradients(model, naive=False, scale=3.7)
    for actual, wanted in zip(losses, expected_losses, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=0)
    assert gradients.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, expected[name]) < 1e-10, name


@pytest.fixture(params=[256, 7], ids=["one_chunk", "uneven_chunks"])
def _chunk_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "MIN_CHUNK_POSITIONS", request.param)


@pytest.mark.parametrize("n_future_tokens", [1, 2, 4, 8])
@pytest.mark.usefixtures("_chunk_size")
def test_equals_naive_sum_in_fp64(n_future_tokens: int) -> None:
    model = tiny_model(n_future_tokens, torch.float64)
    assert_equals_naive_sum(model, model)


@pytest.mark.parametrize("activation_checkpointing", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("n_future_tokens", [1, 4])
@every_kind_of_heads
def test_every_kind_of_heads_equals_the_naive_sum(
    heads: dict[str, Any], n_future_tokens: int, activation_checkpointing: bool
) -> None:
    naive_model = tiny_model(n_future_tokens, torch.float64, **heads)
    model = MultiTokenModel(naive_model.config, activation_checkpointing=activation_checkpointing).double()
    model.load_state_dict(naive_model.state_dict())
    assert_equals_naive_sum(model, naive_model)


@pytest.mark.parametrize("n_future_tokens", [1, 2, 4, 8])
@pytest.mark.usefixtures("_chunk_size")
def test_bf16_gradients_are_as_exact_as_naive_ones(n_future_tokens: int) -> None:
    """The errors against fp64 gradients of the same bf16 weights are no larger than those of naive bf16 gradients."""
    model = tiny_model(n_future_tokens, torch.bfloat16)
    truth_model = tiny_model(n_future_tokens, torch.float64)
    truth_model.load_state_dict({name: p.double() for name, p in model.state_dict().items()})
    truth_losses, truth = accumulated_gradients(truth_model, naive=True, scale=0.25)
    naive_losses_, naive = accumulated_gradients(model, naive=True, scale=0.25)
    losses, gradients = accumulated_gradients(model, naive=False, scale=0.25)
    for ours, theirs, true in zip(losses, naive_losses_, truth_losses, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.double(), true, rtol=2e-2, atol=0)
    for name, gradient in gradients.items():
        assert relative_error(gradient, truth[name]) < 1.5 * relative_error(naive[name], truth[name]) + 2**-8, name


def test_gradient_reaches_the_trunk_only_through_backward() -> None:
    model = tiny_model(2, torch.float32)
    total, _ = model(*random_batch(2, 0))
    assert all(p.grad is None for p in model.parameters())
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_frozen_parameters_get_no_gradient() -> None:
    model = tiny_model(2, torch.float32)
    model.heads.output.weight.requires_grad_(False)
    model.heads.layers[1].requires_grad_(False)
    total, _ = model(*random_batch(2, 0))
    total.backward()
    assert model.heads.output.weight.grad is None
    assert all(p.grad is not None for p in model.heads.layers[0].parameters())


def test_evaluation_gives_the_training_losses_without_a_graph() -> None:
    model = tiny_model(4, torch.float64)
    batch = random_batch(4, 0)
    total, losses = model(*batch)
    with torch.no_grad():
        total_again, losses_again = model(*batch)
    torch.testing.assert_close(losses_again, losses, rtol=1e-12, atol=0)
    assert total.requires_grad
    assert not total_again.requires_grad


def test_second_backward_is_refused() -> None:
    total, _ = tiny_model(2, torch.float32)(*random_batch(2, 0))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="for one backward only"):
        total.backward()


def test_only_one_heads_graph_exists_at_a_time() -> None:
    """Before head i starts, everything that head i - 1 allocated for its graph must be freed."""
    alive = 0
    most_alive = 0

    class Tracked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            nonlocal alive, most_alive
            alive += 1
            most_alive = max(most_alive, alive)
            return x * 2

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return gradients[0] * 2

    z = torch.ones(4, requires_grad=True)
    total, _ = sum_of_pieces(lambda index, x: (Tracked.apply(x) * (index + 1)).sum(), [z], n_pieces=4, parameters=[])
    assert (most_alive, alive) == (1, 0)
    total.backward()
    torch.testing.assert_close(z.grad, torch.full((4,), 2.0 * (1 + 2 + 3 + 4)))


class LogitsCount(TorchDispatchMode):
    """Counts the tensors alive at once that have the size of one head's logits, (B, T, V) in fp32; keeps the most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for output in result if isinstance(result, tuple | list) else [result]:
            if isinstance(output, Tensor) and output.untyped_storage().nbytes() == 4 * B * T * V:
                reference = StorageWeakRef(output.untyped_storage())
                self._seen[reference.cdata] = reference
        self._seen = {cdata: reference for cdata, reference in self._seen.items() if not reference.expired()}
        self.most = max(self.most, len(self._seen))
        return result


@pytest.mark.parametrize("activation_checkpointing", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("head_type", ["transformer", "linear"])
@pytest.mark.parametrize("head_order", ["parallel", "causal", "anticausal"])
def test_every_kind_of_heads_holds_one_heads_logits(
    head_order: str, head_type: str, activation_checkpointing: bool
) -> None:
    most_alive = {}
    for n_future_tokens in (1, 4):
        model = tiny_model(n_future_tokens, torch.float32, head_order=head_order, head_type=head_type)
        recomputing = MultiTokenModel(model.config, activation_checkpointing=activation_checkpointing)
        with LogitsCount() as count:
            recomputing(*random_batch(n_future_tokens, 0))[0].backward()
        with LogitsCount() as naive_count:
            plain_losses(model, *random_batch(n_future_tokens, 0)).sum().backward()
        most_alive[n_future_tokens] = (count.most, naive_count.most)
    sequential, naive = zip(most_alive[1], most_alive[4], strict=True)
    assert 1 <= sequential[0] == sequential[1]
    assert naive[1] >= naive[0] + 3


def test_cross_entropy_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "MIN_CHUNK_POSITIONS", 4)
    rows: list[int] = []
    plain = F.linear

    def count_rows(hidden: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(hidden))
        return plain(hidden, weight)

    monkeypatch.setattr(loss_module.F, "linear", count_rows)
    hidden = torch.randn(2, 50, 8, requires_grad=True)
    unembedding = torch.randn(80, 8, requires_grad=True)
    cross_entropy(hidden, unembedding, torch.randint(80, (2, 50))).backward()
    assert sum(rows) == 100
    assert max(rows) * 80 <= 100 * 8
