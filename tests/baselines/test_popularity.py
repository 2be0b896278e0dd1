import dataclasses

import numpy as np
import pytest

from gensar_hf.baselines import Popularity
from gensar_hf.baselines.baseline import TrainingData, fit_by_name
from gensar_hf.data import training_events
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.files import load_arrays


@pytest.mark.parametrize("task", [RECOMMENDATION, SEARCH])
def test_score_is_the_number_of_training_clicks(split, catalogue, task):
    # Only each user's first click, of film 0, is a training event.
    scorer = Popularity(training_events(split))
    assert task in scorer.tasks
    np.testing.assert_array_equal(scorer.score(split.test[task], catalogue), (catalogue == 0) * 3)


def test_more_training_events_count_and_queries_do_not(split):
    longer = dataclasses.replace(split, train_ends=np.array([3, 7, 12]))  # up to the query, the query, and everything
    np.testing.assert_array_equal(Popularity(training_events(longer)).counts, [3, 2, 0, 1, 0, 1])


def test_held_out_events_are_never_counted(split):
    events = split.events
    held_out = np.arange(12) >= np.repeat(split.train_ends, 4)
    changed = dataclasses.replace(events, items=np.where(held_out & (events.items >= 0), 5, events.items))
    np.testing.assert_array_equal(
        Popularity(training_events(dataclasses.replace(split, events=changed))).counts,
        Popularity(training_events(split)).counts,
    )


def test_it_is_fitted_by_its_name_and_saved(split, tmp_path):
    data = TrainingData(training_events(split), [""] * 6, np.zeros((6, 1)), "none")
    scorer = fit_by_name("popularity", data, {}, 0, tmp_path, tmp_path)
    assert scorer.name == "Popularity"
    assert scorer.num_parameters == 0
    np.testing.assert_array_equal(load_arrays(tmp_path / "clicks.safetensors")["clicks"], [3, 0, 0, 0, 0, 0])
