import numpy as np
import pytest
import torch

from gensar_hf.identifiers import quantization
from gensar_hf.identifiers.quantization import (
    ResidualVectorQuantizer,
    VectorQuantizer,
    fit_codebook,
    residual_quantize,
    sinkhorn_plan,
    straight_through,
)


def quantizer_with(codes: list[list[float]], **settings: float) -> VectorQuantizer:
    quantizer = VectorQuantizer(len(codes), len(codes[0]), **settings)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor(codes))
    return quantizer


def test_loss_and_gradients_of_one_vector_by_hand():
    quantizer = quantizer_with([[0.0, 0.0], [10.0, 10.0]], commitment_weight=0.25)
    vector = torch.tensor([[1.0, 0.0]], requires_grad=True)
    output = quantizer(vector)
    output.loss.backward()
    assert output.codes.tolist() == [0]
    assert output.loss.item() == pytest.approx(1 / 2 + 1 / 4 * 1 / 2)  # the mean of (1², 0²) is 1/2
    assert quantizer.codebook.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]  # 2 (e − r) / 2
    assert vector.grad.tolist() == [[0.25, 0.0]]  # α · 2 (r − e) / 2


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_latent():
    latents = torch.tensor([[1.0, 2.0]], requires_grad=True)
    passed = straight_through(latents, torch.tensor([[3.0, 5.0]]))
    (passed * torch.tensor([[7.0, 11.0]])).sum().backward()
    assert passed.tolist() == [[3.0, 5.0]]
    assert latents.grad.tolist() == [[7.0, 11.0]]


def test_deeper_levels_commit_the_encoder_and_leave_earlier_codebooks_alone():
    quantizer = ResidualVectorQuantizer(2, codebook_size=2, codebook_dim=1, commitment_weight=0.5)
    quantizer.codebooks[0].data = torch.tensor([[1.0], [-50.0]])
    quantizer.codebooks[1].data = torch.tensor([[2.0], [-50.0]])
    latents = torch.tensor([[4.0]], requires_grad=True)
    quantizer(latents).loss.backward()
    # residuals 4 and 3, codes 1 and 2: d/de ‖r − e‖² = 2 (e − r), per level; d/dr α‖r − e‖² = α 2 (r − e), both levels
    assert quantizer.codebooks[0].grad.tolist() == [[-6.0], [0.0]]
    assert quantizer.codebooks[1].grad.tolist() == [[-2.0], [0.0]]
    assert latents.grad.tolist() == [[0.5 * 6.0 + 0.5 * 2.0]]


def test_sinkhorn_plan_has_uniform_marginals_and_equals_plain_scaling_in_float64():
    distances = torch.rand(30, 6, generator=torch.Generator().manual_seed(1))
    plan = sinkhorn_plan(distances, epsilon=0.2, num_iterations=300)
    half_range = float(distances.max() - distances.min()) / 2
    reference = np.exp(-distances.double().numpy() / (half_range * 0.2))
    for _ in range(2000):
        reference /= reference.sum(0, keepdims=True) * 6
        reference /= reference.sum(1, keepdims=True) * 30
    np.testing.assert_allclose(plan.sum(1), np.full(30, 1 / 30), rtol=1e-5)
    np.testing.assert_allclose(plan.sum(0), np.full(6, 1 / 6), rtol=1e-3)
    np.testing.assert_allclose(plan.numpy(), reference, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_sinkhorn_at_the_papers_epsilon_is_finite_and_does_not_depend_on_the_scale(scale: float):
    distances = torch.rand(40, 4, generator=torch.Generator().manual_seed(2)) + torch.tensor([0.0, 3.0, 5.0, 9.0])
    plan = sinkhorn_plan(distances * scale, epsilon=0.003)
    assert torch.isfinite(plan).all()
    assert torch.equal(plan.argmax(1), sinkhorn_plan(distances, epsilon=0.003).argmax(1))
    np.testing.assert_allclose(plan.sum(0), np.full(4, 1 / 4), rtol=0.2)


def test_sinkhorn_of_equal_distances_is_the_uniform_plan():
    np.testing.assert_allclose(sinkhorn_plan(torch.full((3, 2), 7.0), epsilon=0.003), np.full((3, 2), 1 / 6), rtol=1e-5)


def test_balanced_codes_only_while_training():
    vectors = torch.tensor([[0.0], [0.1], [0.2], [0.3]])
    quantizer = quantizer_with([[0.0], [5.0]], sinkhorn_epsilon=0.01)
    assert quantizer.train()(vectors).codes.tolist() == [0, 0, 1, 1]
    assert quantizer.eval()(vectors).codes.tolist() == [0, 0, 0, 0]


def test_dead_codes_move_onto_badly_quantized_vectors_and_live_ones_stay():
    quantizer = quantizer_with([[0.0], [100.0], [1.0]])
    vectors = torch.tensor([[0.0], [0.0], [1.0], [9.0]])  # only 9 has an error
    num_moved = quantizer.reset_dead_codes(vectors, min_items=1, generator=np.random.default_rng(0))
    assert num_moved == 1
    assert quantizer.codebook.tolist() == [[0.0], [9.0], [1.0]]
    assert quantizer.reset_dead_codes(vectors, min_items=0, generator=np.random.default_rng(0)) == 0


def test_reset_without_any_error_moves_nothing():
    quantizer = quantizer_with([[0.0], [100.0]])
    assert quantizer.reset_dead_codes(torch.zeros(5, 1), 1, np.random.default_rng(0)) == 0


def test_codebook_of_fewer_distinct_vectors_than_codes_holds_them_all():
    points = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    codebook = fit_codebook(points, 6, seed=0)
    assert codebook.shape == (6, 2)
    assert torch.isfinite(codebook).all()
    assert torch.cdist(points, codebook).min(dim=1).values.max() == 0


def test_residual_k_means_leaves_less_at_every_level():
    latents = torch.randn(200, 8, generator=torch.Generator().manual_seed(4))
    quantizer = ResidualVectorQuantizer(3, codebook_size=8, codebook_dim=8)
    final = quantizer.fit(latents, seed=0)
    errors = [
        float((latents - residual_quantize(latents, quantizer.codebooks[:levels])[1]).square().sum().item())
        for levels in range(4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert final.square().sum().item() == pytest.approx(errors[-1], rel=1e-4)


def test_moving_averages_by_hand():
    quantizer = quantizer_with([[0.0], [10.0], [50.0]], ema_decay=0.5)
    quantizer.set_codes(torch.arange(3), torch.tensor([[0.0], [10.0], [50.0]]))
    vectors = torch.tensor([[2.0], [4.0], [9.0]], requires_grad=True)
    output = quantizer(vectors)
    output.loss.backward()
    assert output.codes.tolist() == [0, 0, 1]
    # Counts go from 1 to (1 + 2) / 2, (1 + 1) / 2 and 1 / 2; sums from 0, 10, 50 to (0 + 6) / 2, (10 + 9) / 2, 50 / 2.
    assert quantizer.ema_counts.tolist() == [1.5, 1.0, 0.5]
    assert quantizer.codebook.flatten().tolist() == [2.0, 9.5, 50.0]  # no vector is assigned to the last one: it stays
    assert quantizer.codebook.grad is None
    assert vectors.grad.flatten().tolist() == pytest.approx([0.25 * 2 * 2 / 3, 0.25 * 2 * 4 / 3, -0.25 * 2 * 1 / 3])


def test_moving_averages_stand_still_in_evaluation():
    quantizer = quantizer_with([[0.0], [10.0]], ema_decay=0.5).eval()
    quantizer(torch.tensor([[2.0], [9.0]]))
    assert quantizer.codebook.flatten().tolist() == [0.0, 10.0]


def test_a_reset_code_restarts_its_average():
    quantizer = quantizer_with([[0.0], [1000.0]], ema_decay=0.9)
    quantizer.set_codes(torch.arange(2), torch.tensor([[0.0], [1000.0]]))
    vectors = torch.tensor([[0.0], [0.0], [6.0]])
    assert quantizer.reset_dead_codes(vectors, 1, np.random.default_rng(0)) == 1
    quantizer(vectors)
    assert quantizer.codebook.flatten().tolist() == [0.0, 6.0]


def test_k_means_over_many_vectors_sees_a_sample_of_all_of_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization, "MAX_VECTORS_PER_CODE", 10)
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])
    vectors = centres.repeat_interleave(500, dim=0)  # sorted by cluster: the first ones alone would show one centre
    assert sorted(fit_codebook(vectors, 4, seed=0).tolist()) == sorted(centres.tolist())


def test_quantizing_in_batches_equals_quantizing_at_once(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(23, 3, generator=generator), torch.randn(5, 3, generator=generator)
    at_once = residual_quantize(vectors, [codebook])[0]
    monkeypatch.setattr(quantization, "NEAREST_BATCH_SIZE", 4)
    assert torch.equal(residual_quantize(vectors, [codebook])[0], at_once)
    assert at_once.flatten().tolist() == torch.cdist(vectors, codebook).argmin(dim=1).tolist()
