"""Nearest identifiers, against a naive loop over the codebooks."""

import numpy as np
import pytest

from gensar_hf.errors import InputError
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.identifier_table import build_identifier_table
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE
from gensar_hf.identifiers.nearest_identifiers import nearest_identifiers, semantic_latents

NUM_ITEMS = 30


@pytest.fixture(scope="module", params=[(2, 2), (0, 3), (3, 0)])
def quantized(request) -> tuple[IdentifierTable, JointRQVAE]:
    num_shared, num_specific = request.param
    rng = np.random.default_rng(0)
    semantic, collaborative = rng.normal(size=(NUM_ITEMS, 6)), rng.normal(size=(NUM_ITEMS, 5))
    config = JointRQVAEConfig(
        semantic_dim=6, collaborative_dim=5, latent_dim=4, hidden_sizes=[8], codebook_size=8,
        num_shared_levels=num_shared, num_specific_levels=num_specific,
    )  # fmt: skip
    model = JointRQVAE(config)
    model.fit_standardization(semantic, collaborative)
    model.initialize_codebooks(semantic, collaborative, seed=0)
    item_ids = [f"item {row}" for row in range(NUM_ITEMS)]
    return build_identifier_table(model, semantic, collaborative, item_ids), model


def test_latents_are_sums_of_codes(quantized):
    table, model = quantized
    latents = semantic_latents(table.semantic_codes, model)
    for row in (0, 7, 29):
        expected, codes = np.zeros(4), list(table.semantic_codes[row])
        for codebook in model.shared_quantizer.codebooks:
            expected += codebook[codes.pop(0)][:4].detach().numpy()
        for codebook in model.semantic_quantizer.codebooks:
            expected += codebook[codes.pop(0)].detach().numpy()
        np.testing.assert_allclose(latents[row], expected, rtol=1e-5, atol=1e-6)


def test_the_nearest_come_first_and_never_the_item_itself(quantized):
    table, model = quantized
    latents = semantic_latents(table.semantic_codes, model)
    rows, known = np.array([29, 3, 4]), np.arange(20)
    nearest = nearest_identifiers(table.semantic_codes, model, rows, known, k=5)
    for row, found in zip(rows, nearest, strict=True):
        others = [other for other in known if other != row]
        distances = {other: np.square(latents[row] - latents[other]).sum() for other in others}
        best = sorted(distances.values())[:5]
        np.testing.assert_allclose([distances[other] for other in found], best, rtol=1e-3, atol=1e-4)
        assert len(set(found.tolist())) == 5


def test_too_few_known_items_are_refused(quantized):
    table, model = quantized
    assert nearest_identifiers(table.semantic_codes, model, np.array([29]), np.arange(5), k=5).shape == (1, 5)
    with pytest.raises(InputError, match="only 4 known items to choose 5"):
        nearest_identifiers(table.semantic_codes, model, np.array([2]), np.arange(5), k=5)
