import numpy as np
import pytest
import torch

from gensar_hf.baselines import SASRecScorer
from gensar_hf.baselines.baseline import TrainingData, fit_by_name
from gensar_hf.baselines.sasrec import Settings
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import sasrec_training_arguments


@pytest.fixture
def model():
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=6, hidden_size=8, num_layers=1, max_length=2, initializer_range=0.5))
    torch.set_rng_state(generator_state)
    return model.train()


def direct_scores(model, history):
    with torch.inference_mode():
        return model.eval().score(torch.tensor([history]))[0].numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_scores_are_the_models_after_the_latest_clicks(split, catalogue, model, batch_size):
    # The search clicks, asked as recommendations: both earlier clicks are read, the query between them is not.
    requests = Requests(RECOMMENDATION, split.events, split.test[SEARCH].targets)
    scores = SASRecScorer(model, batch_size=batch_size).score(requests, catalogue)
    for row, history in enumerate([[1, 2], [1, 4], [1, 2]]):  # item index + 1
        np.testing.assert_allclose(scores[row], direct_scores(model, history)[catalogue[row]], rtol=1e-5)


def test_only_the_latest_clicks_are_read(split, catalogue, model):
    short = SASRecModel(SASRecConfig(num_items=6, hidden_size=8, num_layers=1, max_length=1, initializer_range=0.5))
    requests = Requests(RECOMMENDATION, split.events, split.test[SEARCH].targets)
    scores = SASRecScorer(short).score(requests, catalogue)
    np.testing.assert_allclose(scores[1], direct_scores(short, [4])[catalogue[1]], rtol=1e-5)


def test_a_user_without_clicks_gets_equal_scores(split, catalogue, model):
    first_clicks = Requests(RECOMMENDATION, split.events, np.array([0, 5, 8]))
    scores = SASRecScorer(model).score(first_clicks, catalogue)
    assert (scores[[0, 2]] == 0).all()
    assert len(set(scores[1].tolist())) == 6


def test_the_models_mode_is_left_as_it_was(split, catalogue, model):
    for training in (True, False):
        model.train(training)
        SASRecScorer(model).score(split.test[RECOMMENDATION], catalogue)
        assert model.training == training


def test_it_does_not_search():
    assert SASRecScorer.tasks == {RECOMMENDATION}


def test_it_is_fitted_by_its_name_and_the_saved_model_scores_alike(make_events, tmp_path, monkeypatch):
    monkeypatch.setattr("gensar_hf.embeddings.sasrec_training.MIN_STEPS", 40)
    clicks = {f"user-{start}": [(0, (start + i) % 6) for i in range(14)] for start in range(6)}
    events = make_events(clicks, [f"film-{item}" for item in range(6)])  # the next film is always the next number
    data = TrainingData(events, [""] * 6, np.zeros((6, 1)), "none")
    values = {"hidden_size": 16, "num_layers": 1, "max_length": 8, "learning_rate": 0.02, "num_train_epochs": 1}

    scorer = fit_by_name("sasrec", data, values, 0, tmp_path, tmp_path / "checkpoints")

    requests, every_item = Requests(RECOMMENDATION, events, np.array([3, 14 + 12])), np.tile(np.arange(6), (2, 1))
    scores = scorer.score(requests, every_item)
    assert scores.argmax(axis=1).tolist() == [3, 1]  # after 0 1 2, and after 1 … 0
    saved = SASRecScorer(SASRecModel.from_pretrained(tmp_path))
    np.testing.assert_allclose(saved.score(requests, every_item), scores, atol=1e-5)


def test_defaults_are_those_of_the_collaborative_stage(tmp_path):
    settings = Settings()
    config, training = SASRecConfig(), sasrec_training_arguments(str(tmp_path), use_cpu=True)
    assert all(getattr(config, name) == value for name, value in settings.model_values().items())
    assert all(getattr(training, name) == value for name, value in settings.training_values().items())
