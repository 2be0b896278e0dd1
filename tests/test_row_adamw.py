import torch
import torch.nn.functional as F

from gensar_hf.checkpoints import RowAdamW


def trained(optimizer_class, rows, sparse, num_steps=5, **options):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 20).reshape(5, 4))
    other = torch.nn.Parameter(torch.ones(4))
    optimizer = optimizer_class([weight, other], lr=0.1, betas=(0.9, 0.98), weight_decay=0.1, **options)
    for step in range(num_steps):
        optimizer.zero_grad()
        ((F.embedding(rows, weight, sparse=sparse) * other - step).square().sum()).backward()
        optimizer.step()
    return weight.detach(), other.detach()


def test_rows_of_every_step_move_as_under_adamw_and_the_others_stay():
    rows = torch.tensor([0, 2, 2, 4])
    for own, other in zip(trained(RowAdamW, rows, True), trained(torch.optim.AdamW, rows, False), strict=True):
        torch.testing.assert_close(own[:1], other[:1])
        if own.ndim == 2:
            torch.testing.assert_close(own[rows], other[rows])
            assert torch.equal(own[[1, 3]], torch.linspace(-1, 1, 20).reshape(5, 4)[[1, 3]])


def test_dense_gradients_are_those_of_adamw():
    rows = torch.tensor([0, 1, 2, 3, 4])
    for own, other in zip(trained(RowAdamW, rows, False), trained(torch.optim.AdamW, rows, False), strict=True):
        assert torch.equal(own, other)
