import numpy as np
import pytest

from gensar_hf.baselines import dsi_qg
from gensar_hf.baselines.dsi_qg import number_codes
from gensar_hf.baselines.tuning import configure, fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.errors import InputError

R, Q, S = Behavior


@pytest.mark.parametrize(
    ("num_items", "base", "num_digits"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (17, 4, 3), (1000, 10, 3)]
)
def test_identifiers_are_all_numbers_below_the_number_of_items(num_items, base, num_digits):
    codes = number_codes(num_items, base, seed=0)
    assert codes.shape == (num_items, num_digits)
    numbers = codes @ base ** np.arange(num_digits)[::-1]
    assert sorted(numbers) == list(range(num_items))
    np.testing.assert_array_equal(codes, number_codes(num_items, base, seed=0))


def test_generated_queries_and_those_of_the_log_are_one_stage(make_events, dataset_of, monkeypatch):
    calls = []
    monkeypatch.setattr(dsi_qg, "fit_generator", lambda *args, **options: calls.append((args, options)))
    events = make_events({"ann": [(R, 1), (Q, 0), (S, 2, 0)]}, list("abc"), ["red"])
    fit_baseline("dsi_qg", dataset_of(events, ["shoes", "hat", ""]), settings={"num_queries": 2, "codebook_size": 2})
    (((name, _, table, *_), options),) = calls
    (pairs,) = options["pairs"]
    assert (name, [item for _, item in pairs]) == ("DSI-QG", [0, 0, 1, 1, 2])
    assert pairs[-1] == ("red", 2)
    assert table.semantic_codes.shape == (3, 2)


def test_settings_are_checked():
    with pytest.raises(InputError, match="Baseline 'dsi_qg': `num_queries` must be at least 1; got 0"):
        configure("dsi_qg", {"num_queries": 0})
