import dataclasses

import numpy as np
import pytest

from gensar_hf.baselines import Popularity
from gensar_hf.data import training_events
from gensar_hf.data.splits import RECOMMENDATION, SEARCH


@pytest.mark.parametrize("task", [RECOMMENDATION, SEARCH])
def test_score_is_the_number_of_training_clicks(split, catalogue, task):
    # Only each user's first click, of film 0, is a training event.
    scorer = Popularity(training_events(split))
    assert task in scorer.tasks
    np.testing.assert_array_equal(scorer.score(split.test[task], catalogue), (catalogue == 0) * 3)


def test_more_training_events_count_and_queries_do_not(split):
    longer = dataclasses.replace(split, train_ends=np.array([3, 7, 12]))  # up to the query, the query, and everything
    np.testing.assert_array_equal(Popularity(training_events(longer)).counts, [3, 2, 0, 1, 0, 1])
