import pytest
from fuzz.fuzz_tables import CLASSES, run


@pytest.mark.parametrize(("num_cases", "seed"), [(60, 7), pytest.param(5000, 0, marks=pytest.mark.slow)])
def test_mutated_tables_are_read_right_or_refused(num_cases, seed):
    counts = run(num_cases, seed)
    assert {name: dict(counts[name]) for name in CLASSES[2:] if counts[name]} == {}
    assert counts["right"].total() > num_cases / 4
