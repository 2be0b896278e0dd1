import pytest
import torch
import torch.nn.functional as F

from gensar_hf import catalogue_loss
from gensar_hf.catalogue_loss import catalogue_losses, sample_items

NUM_ITEMS, DIM = 40, 8


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(12, DIM, generator=generator).div(2).requires_grad_()
    table = torch.randn(1 + NUM_ITEMS, DIM, generator=generator).requires_grad_()
    bias = torch.randn(NUM_ITEMS, generator=generator, requires_grad=True)
    return states, table, bias, torch.randint(NUM_ITEMS, (12,), generator=generator)


def reference(states, table, bias, labels, smoothing):
    logits = states @ table[1:].T + bias
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_blocks_have_the_losses_and_gradients_of_one_product(tensors, monkeypatch, smoothing):
    monkeypatch.setattr(catalogue_loss, "DENSE_ITEMS", NUM_ITEMS - 1)
    monkeypatch.setattr(catalogue_loss, "_BLOCK_LOGITS", 5 * NUM_ITEMS)
    *inputs, labels = tensors
    losses = catalogue_losses(inputs[0], labels, *inputs[1:], label_smoothing=smoothing, present=labels)
    expected = reference(*inputs, labels, smoothing)
    torch.testing.assert_close(losses, expected)
    for own, other in zip(*(torch.autograd.grad(each.sum(), inputs) for each in (losses, expected)), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_of_many_sampled_losses_is_the_exact_loss(tensors, monkeypatch, smoothing):
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", NUM_ITEMS - 1)
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 10_000)
    states, table, bias, labels = tensors
    torch.manual_seed(0)
    losses = torch.stack(
        [catalogue_losses(states, labels, table, bias, smoothing, present=torch.tensor([[3, 5]])) for _ in range(20)]
    )
    torch.testing.assert_close(losses.mean(dim=0), reference(states, table, bias, labels, smoothing), atol=0.02, rtol=0)


def test_without_items_of_the_batch_nothing_is_sampled(tensors, monkeypatch):
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", NUM_ITEMS - 1)
    states, table, bias, labels = tensors
    losses = catalogue_losses(states, labels, table, bias)
    torch.testing.assert_close(losses, reference(states, table, bias, labels, 0.0))


def test_items_of_the_batch_stand_for_themselves_and_the_drawn_ones_for_all_others(monkeypatch):
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 10_000)
    own = torch.tensor([7, 2, 7])
    sample = sample_items(own, NUM_ITEMS, torch.Generator().manual_seed(0))
    assert sample.items[:2].tolist() == [2, 7]
    assert sample.log_weights[:2].tolist() == [0, 0]
    is_own = torch.isin(sample.items, own)
    assert torch.isneginf(sample.log_weights[2:][is_own[2:]]).all()
    weights = torch.bincount(sample.items, sample.log_weights.exp(), minlength=NUM_ITEMS)
    torch.testing.assert_close(weights, torch.ones(NUM_ITEMS), atol=0.3, rtol=0)
