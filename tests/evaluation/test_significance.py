import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gensar_hf.evaluation.significance import bootstrap_interval, holm


def test_width_follows_from_the_variance():
    values = np.repeat([0.0, 1.0], [300, 100])  # p = 1/4: standard error sqrt(p (1 - p) / n) = sqrt(3) / 80
    low, high = bootstrap_interval(values, num_resamples=4000)
    half_width = 1.96 * math.sqrt(3) / 80
    assert low == pytest.approx(1 / 4 - half_width, abs=0.004)
    assert high == pytest.approx(1 / 4 + half_width, abs=0.004)


def test_columns_share_their_resamples():
    values = np.random.default_rng(2).random((200, 2))
    low, high = bootstrap_interval(values, seed=5)
    for column in range(2):
        alone = bootstrap_interval(values[:, column], seed=5)
        assert (low[column], high[column]) == (pytest.approx(alone[0]), pytest.approx(alone[1]))
    assert not np.array_equal(bootstrap_interval(values, seed=6)[0], low)


def test_repeating_a_users_requests_adds_no_certainty():
    values = np.random.default_rng(3).random(100)
    users = np.arange(100)
    once = bootstrap_interval(values)
    grouped = bootstrap_interval(np.tile(values, 9), groups=np.tile(users, 9))
    assert grouped == (pytest.approx(once[0]), pytest.approx(once[1]))
    ungrouped = bootstrap_interval(np.tile(values, 9))
    assert float(ungrouped[1] - ungrouped[0]) == pytest.approx(float(once[1] - once[0]) / 3, rel=0.15)


def test_users_with_more_requests_weigh_more():
    # Users 0 (three requests, all hit) and 1 (one request, missed): the resampled means are 0, 3/4 and 1.
    low, high = bootstrap_interval(np.array([1, 1, 1, 0]), confidence=0.4, groups=np.array([0, 0, 0, 1]))
    assert (float(low), float(high)) == (0.75, 0.75)
    low, high = bootstrap_interval(np.array([1, 1, 1, 0]), confidence=0.9, groups=np.array([0, 0, 0, 1]))
    assert (float(low), float(high)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([], {}, "at least one request"),
        ([1.0], {"confidence": 95}, "between 0 and 1; got 95"),
        ([1.0, 0.0], {"groups": np.array([1])}, "got 1 for 2 values"),
    ],
)
def test_impossible_input_is_refused(values, settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.array(values), **settings)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_corrected_p_values_reject_what_holms_procedure_rejects(p_values):
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for place, test in enumerate(np.argsort(p_values, kind="stable")):  # step down until the first that stays
            if p_values[test] * (len(p_values) - place) > level:
                break
            rejected.add(test)
        assert {test for test, value in enumerate(corrected) if value <= level} == rejected
