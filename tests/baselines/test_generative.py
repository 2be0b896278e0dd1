"""Identifiers from codes, training pairs, and what a generator reads; `LEARNERS` are trained by the slow tests."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gensar_hf.baselines.generative import (
    TEMPERATURE,
    GenerativeConfig,
    TextIdentifierConfig,
    as_searches,
    fit_generator,
    in_batch_loss,
    in_blocks,
    logged_pairs,
    made_pairs,
    one_identifier_table,
    quantized_table,
    text_pairs,
)
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data import Behavior
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.errors import InputError

R, Q, S = Behavior
ITEMS = ["a", "b", "c", "d", "e", "f"]
TITLES = ["red shoes", "red hat", "", "blue hat", "green coat", "blue shoes"]
QUERIES = ["red shoes", "blue shoes"]
# Who has clicked a, c or e clicks the next letter; "red" finds a, "blue" f.
ROWS = {f"user {u}": [(R, 2 * (u % 3)), (R, 2 * (u % 3) + 1), (Q, u % 2), (S, 5 * (u % 2), u % 2)] for u in range(12)}
LEARNERS = {"p5_cid": {}, "dsi_qg": {}, "webultron": {}, "joint_ids": {}, "genret": {"identifier_steps": 20}}


@pytest.fixture(scope="module")
def dataset(make_events, dataset_of):
    return dataset_of(make_events(ROWS, ITEMS, QUERIES), TITLES)


@pytest.fixture(scope="module")
def trained(dataset):
    """A generator of each way of training, after one step, and the table of both."""
    table = one_identifier_table(dataset, np.arange(6)[:, None] // [3, 1] % 3, 3)
    config, training = GenerativeConfig(hidden_size=8), {"seed": 0, "max_steps": 1, "per_device_train_batch_size": 1}
    arguments = dataset, table, config, training
    pairs = fit_generator("pairs", *arguments, pairs=[text_pairs(dataset), logged_pairs(dataset)])
    return {"pairs": pairs, "histories": fit_generator("histories", *arguments, tasks=[RECOMMENDATION, SEARCH])}


def ask(scorer, make_events, query=None, histories=((),)):
    """Scores of all items, for each history, of a recommendation or of a search."""
    last = [(R, 0)] if query is None else [(Q, 0), (S, 0, 0)]
    rows = {str(user): [*((R, item) for item in items), *last] for user, items in enumerate(histories)}
    events = make_events(rows, ITEMS, [query or ""])
    requests = Requests(RECOMMENDATION if query is None else SEARCH, events, events.offsets[1:] - 1)
    return scorer.score(requests, np.tile(np.arange(6), (len(histories), 1)))


def test_codes_are_made_unique(dataset):
    latents = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [9.0]])
    codebooks = [torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([[0.0], [0.1], [0.2]])]
    table = quantized_table(dataset, latents, codebooks)
    assert table.semantic_codes.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]]
    np.testing.assert_array_equal(table.collaborative_codes, table.semantic_codes)
    assert (table.num_shared_levels, table.codebook_size, table.titles) == (2, 3, TITLES)

    same = quantized_table(dataset, torch.zeros(6, 3), [torch.eye(3), torch.eye(3)])  # odd widths as well
    assert len(np.unique(same.semantic_codes, axis=0)) == 6
    with pytest.raises(InputError, match="There are 6 items, but 1 levels of 3 codes make only 3"):
        quantized_table(dataset, latents, codebooks[:1])


def test_blocks_are_quantized_one_by_one(dataset):
    codebooks = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[0.0], [1.0]])]
    whole = in_blocks(codebooks)
    assert whole[1].tolist() == [[0, 0, 2, 0], [0, 0, -2, 0]]
    latents = torch.tensor(
        [[1, 0, 2, 0.2], [1, 0, 2, 0.9], [0, 1, 2, 0], [0, 1, -9, 0], [1, 0, -1, 1], [0.2, 0.9, 1, 1]]
    )
    codes = quantized_table(dataset, latents, whole).semantic_codes
    assert codes.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]]


def test_pairs_come_from_texts_and_from_the_log(dataset):
    assert text_pairs(dataset) == [(title, item) for item, title in enumerate(TITLES) if title]
    assert logged_pairs(dataset)[:2] == [("red shoes", 0), ("blue shoes", 5)]
    made = made_pairs(dataset, 3, seed=0)
    assert [item for _, item in made] == np.repeat([0, 1, 3, 4, 5], 3).tolist()  # the item without words has none
    assert made == made_pairs(dataset, 3, seed=0) != made_pairs(dataset, 3, seed=1)
    assert made_pairs(dataset, 0, seed=0) == []


def test_a_pair_is_a_search_without_a_history(dataset):
    events = as_searches(dataset, [("red shoes", 0), ("blue", 5), ("red shoes", 1)]).events
    assert events.behaviors.tolist() == [Q, S] * 3
    assert events.offsets.tolist() == [0, 2, 4, 6]
    assert events.items.tolist() == [-1, 0, -1, 5, -1, 1]
    assert [events.query_texts[query] for query in events.queries[::2]] == ["red shoes", "blue", "red shoes"]
    with pytest.raises(InputError, match="no item has a text, and no event before the held-out ones is a search"):
        as_searches(dataset, [])


def test_the_distinct_items_of_a_batch_are_the_candidates():
    vectors, table = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    items = torch.tensor([2, 0, 2, 3])
    expected = []
    for vector, item in zip(vectors, items.tolist(), strict=True):
        cosines = {other: F.cosine_similarity(vector, table[other], dim=0) / TEMPERATURE for other in (0, 2, 3)}
        expected.append(torch.stack(list(cosines.values())).logsumexp(0) - cosines[item])
    torch.testing.assert_close(in_batch_loss(vectors, items, table.__getitem__), torch.stack(expected).mean())
    alone = in_batch_loss(vectors[:2], items[:2], table.__getitem__, sources=torch.tensor([0, 2]))
    assert alone == 0  # of two candidates one is the row's own item


def test_a_search_trained_on_pairs_reads_the_query_alone(trained, make_events):
    scorer = trained["pairs"]
    alone = ask(scorer, make_events, "red shoes")
    np.testing.assert_allclose(ask(scorer, make_events, "red shoes", [[2, 3], []]), np.tile(alone, (2, 1)), atol=1e-5)
    assert np.abs(ask(scorer, make_events, "green coat") - alone).max() > 1e-4
    assert (scorer.name, scorer.tasks) == ("pairs", {SEARCH})


def test_histories_are_read_whatever_else_is_in_the_batch(trained, make_events):
    scorer = trained["histories"]
    assert scorer.tasks == {RECOMMENDATION, SEARCH}
    assert scorer.num_parameters == sum(weights.numel() for weights in scorer.pipeline.model.parameters())
    for query in (None, "red shoes"):
        both = ask(scorer, make_events, query, [[2, 3], [1]])
        np.testing.assert_allclose(ask(scorer, make_events, query, [[1]])[0], both[1], atol=1e-5)
        assert np.abs(both[0] - both[1]).max() > 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_size": 1}, "`codebook_size` must be at least 2; got 1"),
        ({"num_levels": 0}, "`num_levels` must be at least 1; got 0"),
        ({"text_encoder": " "}, "`text_encoder` is empty"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(Exception, match="Class validation error") as caught:
        TextIdentifierConfig(**settings)
    assert message in str(caught.value.__cause__)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_tiny_log_is_learned(name, dataset, make_events):
    settings = {"hidden_size": 32, "codebook_size": 3, "per_device_train_batch_size": 2, "num_train_epochs": 1}
    if name not in ("p5_cid", "dsi_qg"):
        settings |= {"text_encoder": None, "num_levels": 2}
    scorer = fit_baseline(name, dataset, settings=settings | LEARNERS[name])
    if SEARCH in scorer.tasks:
        assert ask(scorer, make_events, "red shoes", [[2, 3]]).argmax() == 0
        assert ask(scorer, make_events, "blue shoes", [[2, 3]]).argmax() == 5
    if RECOMMENDATION in scorer.tasks:
        assert [ask(scorer, make_events, None, [[item]]).argmax() for item in (0, 2, 4)] == [1, 3, 5]
