from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gensar_hf.errors import InputError
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE
from gensar_hf.identifiers.networks import Standardization

SEMANTIC_DIM, COLLABORATIVE_DIM = 6, 5


def small_config(**settings: object) -> JointRQVAEConfig:
    return JointRQVAEConfig(
        **{
            "semantic_dim": SEMANTIC_DIM,
            "collaborative_dim": COLLABORATIVE_DIM,
            "latent_dim": 3,
            "hidden_sizes": (12, 8),
            "codebook_size": 4,
            **settings,
        }
    )


def embeddings(num_items: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    semantic = 3 + 2 * generator.standard_normal((num_items, SEMANTIC_DIM))
    collaborative = generator.standard_normal((num_items, COLLABORATIVE_DIM))
    return semantic.astype(np.float32), collaborative.astype(np.float32)


def fitted_model(**settings: object) -> JointRQVAE:
    torch.manual_seed(0)
    model = JointRQVAE(small_config(**settings))
    model.fit_standardization(*embeddings())
    model.initialize_codebooks(*embeddings(), seed=0)
    return model.eval()


def as_float64(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def naive_mlp(layers: torch.nn.Sequential, inputs: np.ndarray) -> np.ndarray:
    linears = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    for index, linear in enumerate(linears):
        inputs = inputs @ as_float64(linear.weight).T + as_float64(linear.bias)
        if index < len(linears) - 1:
            inputs = np.maximum(inputs, 0)
    return inputs


def naive_levels(residual: np.ndarray, codebooks: list[torch.Tensor]) -> tuple[list[int], np.ndarray, float]:
    """Codes, sum of codes and Σ‖r − e‖² / dim of one item."""
    codes, start, error = [], residual, 0.0
    for codebook in map(as_float64, codebooks):
        distances = ((residual - codebook) ** 2).sum(1)
        codes.append(int(distances.argmin()))
        error += float(distances.min()) / len(residual)
        residual = residual - codebook[codes[-1]]
    return codes, start - residual, error


@pytest.mark.parametrize(("num_shared", "num_specific"), [(2, 2), (1, 2), (0, 2), (2, 0), (1, 1)])
def test_forward_equals_a_naive_float64_reading_of_the_paper(num_shared: int, num_specific: int):
    model = fitted_model(num_shared_levels=num_shared, num_specific_levels=num_specific, commitment_weight=0.4)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    semantic, collaborative = embeddings(seed=2)
    output = model(torch.tensor(semantic), torch.tensor(collaborative))
    fitted = [table.astype(np.float64) for table in embeddings(seed=0)]  # what the standardization was fitted on
    inputs = [(x - y.mean(0)) / y.std(0) for x, y in zip((semantic, collaborative), fitted, strict=True)]
    latents = [naive_mlp(model.semantic_encoder, inputs[0]), naive_mlp(model.collaborative_encoder, inputs[1])]
    quantized, codes, error = np.zeros((40, 6)), ([], []), 0.0
    for row, latent in enumerate(np.concatenate(latents, axis=1)):
        shared_codes, shared_sum, shared_error = naive_levels(latent, model.shared_quantizer.codebooks)
        rest = latent - shared_sum
        left = naive_levels(rest[:3], model.semantic_quantizer.codebooks)
        right = naive_levels(rest[3:], model.collaborative_quantizer.codebooks)
        codes[0].append(shared_codes + left[0])
        codes[1].append(shared_codes + right[0])
        quantized[row] = shared_sum + np.concatenate([left[1], right[1]])
        error += (shared_error + left[2] + right[2]) / 40
    decoded = [
        naive_mlp(model.semantic_decoder, quantized[:, :3]),
        naive_mlp(model.collaborative_decoder, quantized[:, 3:]),
    ]
    reconstruction = sum(float(((x - y) ** 2).mean()) for x, y in zip(inputs, decoded, strict=True))
    assert output.semantic_codes.tolist() == codes[0]
    assert output.collaborative_codes.tolist() == codes[1]
    assert output.reconstruction_loss.item() == pytest.approx(reconstruction, rel=1e-4)
    assert output.quantization_loss.item() == pytest.approx(1.4 * error, rel=1e-4)
    assert output.loss.item() == pytest.approx(reconstruction + 1.4 * error, rel=1e-4)
    assert next(iter(output)) == "loss"


def test_gradients_reach_encoders_decoders_and_chosen_codes():
    model = fitted_model().train()
    semantic, collaborative = map(torch.tensor, embeddings())
    model(semantic, collaborative).loss.backward()
    untouched = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert untouched == []


def test_codes_agree_between_forward_encode_and_shared_levels():
    model = fitted_model()
    semantic, collaborative = embeddings()
    codes = model.encode(semantic, collaborative)
    output = model(torch.tensor(semantic), torch.tensor(collaborative))
    assert np.array_equal(codes.semantic_codes, output.semantic_codes.numpy())
    assert np.array_equal(codes.collaborative_codes, output.collaborative_codes.numpy())
    assert np.array_equal(codes.semantic_codes[:, :2], codes.collaborative_codes[:, :2])
    training = model.train().encode(semantic, collaborative)  # Sinkhorn belongs to training steps, not to encode
    assert np.array_equal(codes.semantic_codes, training.semantic_codes)


def test_without_specific_levels_both_identifiers_are_equal_and_the_shared_level_is_balanced():
    model = fitted_model(num_specific_levels=0)
    codes = model.encode(*embeddings())
    assert np.array_equal(codes.semantic_codes, codes.collaborative_codes)
    assert [level.sinkhorn_epsilon for level in model.shared_quantizer.quantizers] == [0.0, 0.003]


@pytest.mark.parametrize(
    "settings",
    [
        {"quantizer": "rq-kmeans"}, {"num_shared_levels": 0}, {"num_specific_levels": 0}, {"embeddings": "semantic"},
        {"ema_decay": 0.9},
    ],
)  # fmt: skip
def test_reloaded_model_gives_the_same_codes_to_the_last_bit(tmp_path: Path, settings: dict[str, object]):
    model = fitted_model(**settings).train()
    model(*map(torch.from_numpy, embeddings()))  # moves the averages
    model.eval().save_pretrained(tmp_path)
    reloaded = JointRQVAE.from_pretrained(tmp_path)
    before, after = model.encode(*embeddings(seed=9)), reloaded.encode(*embeddings(seed=9))
    for name in ("semantic_codes", "collaborative_codes", "latents", "shared_codebooks", "semantic_codebooks"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    state, reloaded_state = model.state_dict(), reloaded.state_dict()
    assert state.keys() == reloaded_state.keys()
    assert all(torch.equal(state[name], reloaded_state[name]) for name in state)
    assert {name: reloaded.config.to_dict()[name] for name in settings} == settings


def test_k_means_start_is_exactly_a_pca_projection_whatever_the_hidden_layers():
    """The MLP begins as the linear map that rq-kmeans uses, so both begin with the same latents."""
    deep, linear = fitted_model(), fitted_model(quantizer="rq-kmeans")
    left, right = deep.encode(*embeddings()).latents, linear.encode(*embeddings()).latents
    np.testing.assert_allclose(left, right, atol=1e-5)
    np.testing.assert_allclose(np.square(left).reshape(40, 2, 3).mean((0, 2)), [1.0, 1.0], rtol=1e-4)


def test_full_rank_projection_of_wide_latents_loses_nothing():
    model = fitted_model(quantizer="rq-kmeans", latent_dim=8)
    latents = model.encode(*embeddings()).latents
    error = model.reconstruction_error(*embeddings(), latents)
    assert error["semantic"] == pytest.approx(0, abs=1e-8)
    assert error["collaborative"] == pytest.approx(0, abs=1e-8)


def test_standardization_by_hand_and_constant_dimensions():
    standardization = Standardization(2)
    standardization.fit(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert standardization(torch.tensor([[1.0, 7.0], [5.0, 8.0]])).tolist() == [[-1.0, 0.0], [3.0, 1.0]]


def test_dead_codes_are_reset_and_then_used():
    model = fitted_model()
    with torch.no_grad():
        for quantizer in (model.shared_quantizer, model.semantic_quantizer):
            quantizer.codebooks[0][2:] = 1000.0
    assert model.reset_dead_codes(*embeddings(), seed=0) >= 4
    codes = model.encode(*embeddings()).semantic_codes
    assert set(codes[:, 0]) == {0, 1, 2, 3}
    assert set(codes[:, 2]) == {0, 1, 2, 3}


def spoiled(kind: int, change: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    tables = list(embeddings())
    tables[kind] = change(tables[kind].copy())
    return tables


def with_nan(table: np.ndarray) -> np.ndarray:
    table[7, 2] = np.nan
    return table


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (spoiled(0, with_nan), r"semantic embedding of item 7 .* is nan in dimension 2; every value must be finite"),
        (spoiled(1, lambda table: table * np.inf), r"collaborative embedding of item 0 .* inf in dimension 0"),
        (spoiled(0, np.ones_like), r"All 40 semantic embeddings are equal"),
        (spoiled(1, lambda table: table[:, :4]), r"collaborative embeddings have 4 dimensions, but .* is 5"),
        (spoiled(1, lambda table: table[:30]), r"40 semantic but 30 collaborative embeddings"),
        (spoiled(0, lambda table: table[0]), r"semantic embeddings must be a table .* shape \(6,\)"),
        ([table[:1] for table in embeddings()], r"Only 1 item was given"),
        ([table[:0] for table in embeddings()], r"must be a table with one row per item; got no item"),
    ],
)
def test_unusable_embeddings_are_refused_in_one_sentence(tables: list[np.ndarray], message: str):
    with pytest.raises(InputError, match=message) as caught:
        JointRQVAE(small_config()).fit_standardization(*tables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_shared_levels": 0, "num_specific_levels": 0},
        {"num_shared_levels": -1},
        {"codebook_size": 1},
        {"latent_dim": 0},
        {"hidden_sizes": (8, 1)},
        {"commitment_weight": -0.1},
        {"sinkhorn_epsilon": -1.0},
        {"quantizer": "kmeans"},
        {"initialization": "zeros"},
        {"ema_decay": 1.0},
        {"collaborative_scale": 0.0},
        {"collaborative_scale": float("nan")},
    ],
)
def test_impossible_configurations_are_refused(settings: dict[str, object]):
    with pytest.raises(Exception, match=next(iter(settings))):
        small_config(**settings)


@pytest.mark.parametrize("kind", ["semantic", "collaborative"])
def test_one_embedding_gives_one_identifier_that_ignores_the_other(kind: str):
    model = fitted_model(embeddings=kind, num_shared_levels=1, num_specific_levels=2)
    semantic, collaborative = embeddings()
    codes = model.encode(semantic, collaborative)
    assert (codes.num_shared_levels, codes.num_levels) == (3, 3)
    assert np.array_equal(codes.semantic_codes, codes.collaborative_codes)
    assert len(np.unique(codes.semantic_codes, axis=0)) > 10
    shuffled = (semantic, collaborative[::-1]) if kind == "semantic" else (semantic[::-1], collaborative)
    assert np.array_equal(model.encode(*map(np.ascontiguousarray, shuffled)).semantic_codes, codes.semantic_codes)


def test_one_embedding_trains_only_its_networks_and_counts_only_its_error():
    model = fitted_model(embeddings="semantic").train()
    semantic, collaborative = map(torch.from_numpy, embeddings())
    output = model(semantic, collaborative)
    output.loss.backward()
    assert output.reconstruction_loss.item() < 1
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"semantic_encoder", "semantic_decoder", "shared_quantizer"}
    assert not any(parameter.requires_grad for parameter in model.collaborative_encoder.parameters())


def test_collaborative_scale_is_that_of_the_latents_and_changes_no_decoding():
    models = [fitted_model(collaborative_scale=scale, latent_dim=5) for scale in (1.0, 0.5)]
    semantic, collaborative = embeddings()
    plain, scaled = (model.encode(semantic, collaborative).latents for model in models)
    assert np.sqrt(np.square(plain[:, 5:]).mean()) == pytest.approx(1.0, rel=1e-5)
    assert scaled[:, :5] == pytest.approx(plain[:, :5], abs=1e-5)
    assert scaled[:, 5:] == pytest.approx(plain[:, 5:] / 2, abs=1e-5)
    errors = [
        model.reconstruction_error(semantic, collaborative, latents)
        for model, latents in zip(models, (plain, scaled), strict=True)
    ]
    assert errors[0] == pytest.approx(errors[1], abs=1e-5)
