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
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", NUM_ITEMS - 1)
    monkeypatch.setattr(catalogue_loss, "_BLOCK_LOGITS", 5 * NUM_ITEMS)
    *inputs, labels = tensors
    losses = catalogue_losses(inputs[0], labels, *inputs[1:], label_smoothing=smoothing)
    expected = reference(*inputs, labels, smoothing)
    torch.testing.assert_close(losses, expected)
    for own, other in zip(*(torch.autograd.grad(each.sum(), inputs) for each in (losses, expected)), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_sample_of_the_whole_catalogue_has_the_exact_losses_and_gradients(tensors, monkeypatch, smoothing):
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", NUM_ITEMS - 1)
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", NUM_ITEMS)
    *inputs, labels = tensors
    losses = catalogue_losses(inputs[0], labels, *inputs[1:], smoothing, present=torch.tensor([[3, 5]]))
    expected = reference(*inputs, labels, smoothing)
    torch.testing.assert_close(losses, expected)
    for own, other in zip(*(torch.autograd.grad(each.sum(), inputs) for each in (losses, expected)), strict=True):
        torch.testing.assert_close(own, other)


def test_the_mean_of_many_sampled_partition_sums_is_that_over_all_items(tensors, monkeypatch):
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", 10)
    states, table, bias, _ = tensors
    exponentials = (states @ table[1:].T + bias).exp()
    generator = torch.Generator().manual_seed(0)
    samples = [sample_items(torch.tensor([3, 5]), NUM_ITEMS, generator) for _ in range(2000)]
    sums = torch.stack([(exponentials[:, items] * weights.exp()).sum(dim=1) for items, weights in samples])
    torch.testing.assert_close(sums.mean(dim=0), exponentials.sum(dim=1), atol=0, rtol=0.05)


def test_without_items_of_the_batch_nothing_is_sampled(tensors, monkeypatch):
    monkeypatch.setattr(catalogue_loss, "EXACT_ITEMS", NUM_ITEMS - 1)
    states, table, bias, labels = tensors
    losses = catalogue_losses(states, labels, table, bias)
    torch.testing.assert_close(losses, reference(states, table, bias, labels, 0.0))


def test_drawn_items_that_the_batch_has_count_once(monkeypatch):
    monkeypatch.setattr(catalogue_loss, "NUM_NEGATIVES", NUM_ITEMS)
    sample = sample_items(torch.tensor([7, 2, 7]), NUM_ITEMS)
    assert sample.items.tolist() == [2, 7, *range(NUM_ITEMS)]
    assert sample.log_weights.exp().tolist() == [1, 1, *(float(item not in (2, 7)) for item in range(NUM_ITEMS))]
