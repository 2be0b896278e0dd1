"""LRURec: the recurrence by hand and in parallel, its initial eigenvalues, causality, padding and errors."""

import numpy as np
import pytest
import torch

from gensar_hf.baselines.lrurec import LRURecConfig, LRURecModel, parallel_scan, sequential_scan
from gensar_hf.baselines.sequential import new_model
from gensar_hf.embeddings.modeling_sasrec import pad_histories

NUM_ITEMS = 9


def tiny_model(**settings) -> LRURecModel:
    config = LRURecConfig(
        **{"num_items": NUM_ITEMS, "hidden_size": 6, "state_size": 5, "max_length": 7, "initializer_range": 0.5}
        | settings
    )
    return new_model(LRURecModel, config, seed=0).eval()


@pytest.fixture
def model() -> LRURecModel:
    return tiny_model()


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_the_parallel_scan_is_the_loop(length):
    generator = torch.Generator().manual_seed(length)
    real, imaginary = torch.randn(2, 4, length, 3, generator=generator, requires_grad=True)
    inputs = torch.complex(real, imaginary)
    decay = torch.polar(torch.tensor([0.99, 0.8, 1e-9]), torch.tensor([0.1, 3.0, 6.0])).requires_grad_()

    states = parallel_scan(inputs, decay)
    expected = sequential_scan(inputs, decay)
    torch.testing.assert_close(states, expected)
    for tensor in (inputs, decay):
        gradients = [
            torch.autograd.grad(both.abs().sum(), tensor, retain_graph=True, materialize_grads=True)[0]
            for both in (states, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_scan_of_real_numbers_by_hand():
    states = sequential_scan(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([0.5]))
    assert states.flatten().tolist() == [1, 1 / 2 + 2, 1 / 4 + 1 + 3]


def test_the_recurrence_follows_its_equations(model):
    """Orvieto et al. (2023), with B and C put together from the real matrices; biases are 0 at first."""
    recurrence = model.blocks[0].recurrence
    weights = {name: value.numpy().astype(np.float64) for name, value in recurrence.state_dict().items()}
    eigenvalues = np.exp(-np.exp(weights["nu"]) + 1j * np.exp(weights["theta"]))
    to_state = weights["input.weight"][0::2] + 1j * weights["input.weight"][1::2]
    from_state = weights["output.weight"][:, 0::2] - 1j * weights["output.weight"][:, 1::2]
    inputs = np.random.default_rng(0).standard_normal((5, 6))
    state, expected = np.zeros(5), []
    for step in inputs:
        state = eigenvalues * state + np.sqrt(1 - np.abs(eigenvalues) ** 2) * (to_state @ step)
        expected.append((from_state @ state).real)

    with torch.no_grad():
        actual = recurrence(torch.tensor(inputs, dtype=torch.float32)[None])[0]
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)


def test_training_and_evaluation_read_the_same(model):
    input_ids = torch.tensor([[3, 1, 8, 4, 4, 2, 7], [5, 2, 0, 0, 0, 0, 0]])
    stepwise = model(input_ids).logits
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    torch.testing.assert_close(model(input_ids).logits, stepwise)


def test_initial_eigenvalues_are_on_the_ring_and_stay_stable():
    recurrence = tiny_model(state_size=400, min_radius=0.5, max_radius=0.9).blocks[1].recurrence
    radii, angles = recurrence.eigenvalues().abs(), recurrence.eigenvalues().angle()

    assert 0.5 <= radii.min() < 0.52
    assert 0.88 < radii.max() <= 0.9
    assert (radii**2).mean().item() == pytest.approx((0.5**2 + 0.9**2) / 2, abs=0.03)  # uniform in area
    assert angles.min() < -3
    assert angles.max() > 3
    with torch.no_grad():
        recurrence.nu.copy_(torch.linspace(-5, 5, 400))
    assert (recurrence.eigenvalues().abs() < 1).all()


def test_no_position_sees_a_later_one(model):
    before = model(torch.tensor([[3, 5, 1, 8, 2]])).logits
    after = model(torch.tensor([[3, 5, 9, 7, 4]])).logits

    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().max() > 1e-3


def test_padding_changes_no_score_and_an_empty_history_prefers_no_item(model):
    scores = model.score(pad_histories([np.array([2, 4]), np.arange(5), np.array([], dtype=int)], max_length=7))

    torch.testing.assert_close(scores[:1], model.score(torch.tensor([[3, 5]])))
    torch.testing.assert_close(scores[1], model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, -1])
    assert scores[2].tolist() == [0.0] * NUM_ITEMS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state_size": 0}, "`state_size` must be at least 1; got 0"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1"),
        ({"max_radius": 1.0}, "unstable; got 0.8 and 1.0"),
        ({"min_radius": 0.99}, "`min_radius` and `max_radius` must be ascending"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        LRURecConfig(**settings)
