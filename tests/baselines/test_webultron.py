import numpy as np
import pytest
import torch

from gensar_hf.baselines import webultron
from gensar_hf.baselines.tuning import configure, fit_baseline
from gensar_hf.baselines.webultron import product_codebooks
from gensar_hf.data import Behavior
from gensar_hf.errors import InputError
from gensar_hf.identifiers.quantization import nearest_code, residual_quantize

R, Q, S = Behavior


def test_each_block_gets_its_nearest_code():
    embeddings = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    codebooks = product_codebooks(embeddings, 3, 4, seed=0)
    codes, _ = residual_quantize(torch.from_numpy(embeddings), codebooks)
    for level, block in enumerate(([0, 1, 2], [3, 4], [5, 6])):
        assert not np.delete(codebooks[level].numpy(), block, axis=1).any()
        own = torch.from_numpy(embeddings[:, block]), codebooks[level][:, block]
        np.testing.assert_array_equal(codes[:, level], nearest_code(*own)[1])


@pytest.mark.parametrize("has_searches", [True, False])
def test_texts_then_pseudo_queries_then_the_log(make_events, dataset_of, monkeypatch, has_searches):
    calls = []
    monkeypatch.setattr(webultron, "fit_generator", lambda *args, **options: calls.append((args, options)))
    rows = [(R, 1), (Q, 0), (S, 2, 0)] if has_searches else [(R, 1), (R, 0)]
    data = dataset_of(make_events({"ann": rows}, list("abc"), ["red"]), ["shoes", "hat", "hat of a man"])
    settings = {"num_queries": 2, "codebook_size": 2, "num_levels": 2, "text_encoder": None}
    fit_baseline("webultron", data, settings=settings)
    (((name, _, table, *_), options),) = calls
    texts, made, *logged = options["pairs"]
    assert name == "WebUltron"
    assert texts == [("shoes", 0), ("hat", 1), ("hat of a man", 2)]
    assert [item for _, item in made] == [0, 0, 1, 1, 2, 2]
    assert logged == ([[("red", 2)]] if has_searches else [])
    assert len(np.unique(table.semantic_codes, axis=0)) == 3


def test_settings_are_checked():
    with pytest.raises(InputError, match="Baseline 'webultron': `num_queries` must be at least 1; got 0"):
        configure("webultron", {"num_queries": 0})
