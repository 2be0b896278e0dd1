"""Models of cornac behind the protocol of the evaluation; most tests need the extra."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gensar_hf.baselines.cornac import CornacScorer
from gensar_hf.baselines.tuning import configure, fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.errors import InputError

R, Q, S = Behavior
NUM_ITEMS = 8
GRU4REC = {"layers": [16], "batch_size": 4, "n_epochs": 12, "n_sample": 32}


@pytest.fixture
def data(make_events, dataset_of):
    """The next item is always the next number; nobody clicks the last item."""
    users = {f"user-{user}": [(R, (user + i) % NUM_ITEMS) for i in range(16)] for user in range(NUM_ITEMS)}
    return dataset_of(make_events(users, [f"film-{item}" for item in range(NUM_ITEMS + 1)]))


def test_scores_are_those_of_the_candidates_after_the_clicks(split, catalogue):
    """A recommender that gives item i the score 100 · user + 10 · (sum of the clicks) + i."""
    calls = []

    def score(user, history):
        calls.append((user, history))
        return 100 * user + 10 * sum(history) + np.arange(6)

    scorer = CornacScorer(SimpleNamespace(score=score), "Sum")
    requests = Requests(RECOMMENDATION, split.events, split.test[SEARCH].targets)
    scores = scorer.score(requests, catalogue)
    assert calls == [(0, [0, 1]), (1, [0, 3]), (2, [0, 1])]  # the query between them is not read
    np.testing.assert_array_equal(scores, catalogue + np.array([[10], [130], [210]]))
    assert (scorer.tasks, scorer.num_parameters) == ({RECOMMENDATION}, 0)


def test_training_learns_what_follows(data):
    pytest.importorskip("cornac")
    generator_state = torch.get_rng_state()
    scorer = fit_baseline("cornac_gru4rec", data, settings={"arguments": GRU4REC})

    assert torch.equal(torch.get_rng_state(), generator_state)
    requests = Requests(RECOMMENDATION, data.events, np.array([2, 16 + 3, 0]))  # after 0 1, after 1 2 3, after nothing
    every_item = np.tile(np.arange(NUM_ITEMS + 1), (3, 1))
    scores = scorer.score(requests, every_item)
    assert scores[:2].argmax(axis=1).tolist() == [2, 4]
    assert len(set(scores[2])) == 1
    np.testing.assert_allclose(scorer.score(requests.subset([1]), every_item[1:2, ::-1])[0, ::-1], scores[1], rtol=1e-5)
    assert scorer.name == "GRU4Rec (cornac)"
    assert scorer.num_parameters > 0


@pytest.mark.parametrize("name", ["cornac_sasrec", "cornac_bert4rec"])
def test_transformers_score_every_item(data, name):
    pytest.importorskip("cornac")
    arguments = {"embedding_dim": 8, "max_len": 4, "n_epochs": 1, "n_sample": 8, "batch_size": 32}
    scorer = fit_baseline(name, data, settings={"arguments": arguments})
    scores = scorer.score(Requests(RECOMMENDATION, data.events, np.array([6])), np.arange(NUM_ITEMS + 1)[None])
    assert len(set(scores[0])) == NUM_ITEMS + 1
    assert np.isfinite(scores).all()


@pytest.fixture
def encoder(monkeypatch):
    """Random embeddings of texts."""

    def encode(texts):
        return np.random.default_rng(0).standard_normal((len(texts), 6)).astype(np.float32)

    monkeypatch.setattr("gensar_hf.baselines.cornac.TextEncoder.load", lambda name: SimpleNamespace(encode=encode))


@pytest.mark.usefixtures("encoder")
def test_tiger_scores_every_item_by_its_semantic_id(data):
    pytest.importorskip("cornac")
    small = {"d_model": 8, "d_ff": 8, "num_heads": 1, "d_kv": 8, "num_enc_layers": 1, "num_dec_layers": 1, "max_len": 3}
    codes = {"tokenizer": "rkmeans", "rqvae_num_levels": 2, "rqvae_codebook_size": 3, "n_epochs": 1}
    scorer = fit_baseline("cornac_tiger", data, settings={"arguments": {**small, **codes}})

    scores = scorer.score(Requests(RECOMMENDATION, data.events, np.array([6])), np.arange(NUM_ITEMS + 1)[None])
    assert (scores < 0).all()  # log-likelihoods
    assert (scores > -100).all()  # a beam gives -1e10 to others


@pytest.mark.usefixtures("encoder")
def test_rpg_scores_every_item_by_its_semantic_id(data, make_events, dataset_of):
    pytest.importorskip("cornac")
    pytest.importorskip("faiss")
    small = {"n_codebook": 2, "pca_dim": 4, "d_model": 8, "n_layer": 1, "n_head": 1, "n_inner": 8, "n_epochs": 1}
    users = {f"user-{user}": [(R, (40 * user + i) % 300) for i in range(40)] for user in range(8)}
    many = dataset_of(make_events(users, [f"film-{item}" for item in range(301)]))
    scorer = fit_baseline("cornac_rpg", many, settings={"arguments": small})

    scores = scorer.score(Requests(RECOMMENDATION, many.events, np.array([6])), np.arange(301)[None])
    assert len(np.unique(scores)) > 100
    assert (np.abs(scores) < 100).all()  # a walk through its graph gives a score to those alone that it meets
    with pytest.raises(InputError, match=r"cornac's RPG refuses its `arguments` .* at least as large as .*256"):
        fit_baseline("cornac_rpg", data, settings={"arguments": small})


@pytest.mark.usefixtures("encoder")
def test_rpg_without_faiss_is_an_extra_to_install(data, monkeypatch):
    pytest.importorskip("cornac")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'gensar-hf\[faiss\]'"):
        fit_baseline("cornac_rpg", data)


def test_a_missing_cornac_is_an_extra_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "cornac", None)
    with pytest.raises(InputError, match=r"pip install 'gensar-hf\[cornac\]'"):
        fit_baseline("cornac_sasrec", data)


def test_nothing_to_learn_from_is_reported(make_events, dataset_of):
    pytest.importorskip("cornac")
    events = make_events({"ann": [(R, 0)], "bob": [(Q, 0), (S, 1, 0)]}, ["film-0", "film-1"])
    with pytest.raises(InputError, match="none of the 2 users has two "):
        fit_baseline("cornac_sasrec", dataset_of(events))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "DiffGRM"}, "`model` must be one of SASRec, .*; got 'DiffGRM'"),
        ({"arguments": 3}, "`arguments` must hold arguments of cornac's SASRec by name; got 3"),
        ({"n_epochs": 3}, "has no setting 'n_epochs'; its settings are model, arguments"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        configure("cornac_sasrec", settings)


@pytest.mark.parametrize("arguments", [{"epochs": 3}, {"loss": "none"}, {"seed": 1}])
def test_arguments_that_cornac_refuses_are_named(data, arguments):
    pytest.importorskip("cornac")
    with pytest.raises(InputError, match=f"cornac's SASRec refuses its `arguments` .*{next(iter(arguments))}"):
        fit_baseline("cornac_sasrec", data, settings={"arguments": arguments})
