"""What callers give: wrong types, odd texts, huge numbers, a tokenizer that is used for something else."""

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets.fingerprint import Hasher
from pipeline_requests import HISTORIES, HISTORY, QUERIES, assert_same_answers, item_ids

from gensar_hf import (
    GenSARPipeline,
    GenSARTokenizer,
    GenSARTrainer,
    GenSARTrainingArguments,
    IdentifierTable,
    InteractionDataset,
    SASRecModel,
    train,
)
from gensar_hf.generator import item_scores

CLICK = {"item_id": "film-2"}


def answers(pipe: GenSARPipeline) -> list[Any]:
    everything = pipe.tokenizer.identifiers.item_ids
    return [
        *pipe.recommend(HISTORIES, top_k=5),
        pipe.search("comedy space adventure crime drama", HISTORY, top_k=5),
        pipe.rank(HISTORY, everything, "space crime"),
    ]


# ---- the tokenizer


@pytest.mark.parametrize("kind", ["tokens", "texts", "causal"])
def test_no_use_of_the_tokenizer_changes_an_answer(pipe: GenSARPipeline, tmp_path: Path) -> None:
    pipe = copy.deepcopy(pipe)
    before, suggested = answers(pipe), pipe.suggest_queries(HISTORIES)
    pipe.tokenizer(["some text", "more text here"], padding="max_length", truncation=True, max_length=2)
    pipe.tokenizer.add_tokens(["comedy", "space"])
    pipe.tokenizer.pad_token = pipe.tokenizer.unk_token
    pipe.tokenizer.padding_side = "left" if pipe.tokenizer.padding_side == "right" else "right"
    pipe.set_catalogue(pipe.tokenizer.identifiers)
    assert (answers(pipe), pipe.suggest_queries(HISTORIES)) == (before, suggested)
    pipe.save_pretrained(tmp_path)
    loaded = GenSARPipeline.from_pretrained(tmp_path, device="cpu")
    assert_same_answers(answers(loaded), before, "item_id")
    assert_same_answers(loaded.suggest_queries(HISTORIES), suggested, "query")
    assert len(loaded.tokenizer) == len(pipe.tokenizer) - 2


@pytest.mark.parametrize("kind", ["tokens", "texts", "causal"])
def test_use_does_not_change_the_tokenizer_s_hash(model_dirs: dict[str, Path], kind: str) -> None:
    pipe = GenSARPipeline.from_pretrained(model_dirs[kind], device="cpu")
    before = Hasher.hash(pipe.tokenizer)  # `datasets.map` finds its cache by it
    expected = answers(pipe)
    pipe.suggest_queries(HISTORIES)
    assert Hasher.hash(pipe.tokenizer) == before
    pickled = GenSARPipeline(pipe.model, pickle.loads(pickle.dumps(pipe.tokenizer)))  # as for processes of a DataLoader
    assert_same_answers(answers(pickled), expected, "item_id")


# ---- wrong arguments


class Endless(Sequence):
    """Events without end."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: Any) -> Any:
        return CLICK


WRONG: dict[str, Callable[[GenSARPipeline], Any]] = {
    "array as query": lambda pipe: pipe.recommend([{**CLICK, "query": np.array(["a", "b"])}]),
    "number as query": lambda pipe: pipe.recommend([{**CLICK, "query": 0}]),
    "false as query": lambda pipe: pipe.recommend([{**CLICK, "query": False}]),
    "misspelt query": lambda pipe: pipe.recommend([{**CLICK, "qurey": "space"}]),
    "misspelt item": lambda pipe: pipe.recommend([{"query": "space", "itemid": "film-2"}]),
    "tensor as query": lambda pipe: pipe.search(torch.tensor(5)),
    "query without end": lambda pipe: pipe.search(iter(str, "")),
    "object as query": lambda pipe: pipe.rank([HISTORY] * 2, [["film-1"]] * 2, query=object()),
    "number as history": lambda pipe: pipe.search("space", 5),
    "table as history": lambda pipe: pipe.recommend(pd.DataFrame([CLICK])),
    "long text as history": lambda pipe: pipe.recommend("x" * 10**6),
    "long list as query": lambda pipe: pipe.search([list(range(10**5))]),
    "long item id": lambda pipe: pipe.recommend([{"item_id": "x" * 10**5}]),
    "long candidate": lambda pipe: pipe.rank(HISTORY, ["x" * 10**5]),
    "candidates without end": lambda pipe: pipe.rank(HISTORY, iter(int, 1)),
    "numbers for candidates": lambda pipe: pipe.rank([HISTORY] * 2, 5),
    "true as top_k": lambda pipe: pipe.recommend(HISTORY, top_k=True),
    "huge negative top_k": lambda pipe: pipe.recommend(HISTORY, top_k=-(10**5000)),
    "array as flag": lambda pipe: pipe.recommend(HISTORY, exclude_seen=np.array([True, False])),
    "text as flag": lambda pipe: pipe.search("space", explain="yes"),
    "list as choice": lambda pipe: pipe.recommend(HISTORY, on_unknown=["raise"]),
    "array as method": lambda pipe: pipe.rank(HISTORY, ["film-1"], method=np.array(["exact", "fast"])),
    "no beams": lambda pipe: GenSARPipeline(pipe.model, pipe.tokenizer, num_beams=-3),
    "no batch": lambda pipe: GenSARPipeline(pipe.model, pipe.tokenizer, batch_size=0),
    "number as ids": lambda pipe: pipe.remove_items(torch.tensor(3)),
    "table as ids": lambda pipe: pipe.restore_items(np.zeros((2, 2))),
    "no folder": lambda pipe: GenSARPipeline.from_pretrained(None),
    "number as folder": lambda pipe: GenSARPipeline.from_pretrained(3),
    "number as inner folder": lambda pipe: GenSARPipeline.from_pretrained("films", subfolder=3),
    "no folder to save to": lambda pipe: pipe.save_pretrained(None),
    "number as folder to save to": lambda pipe: pipe.save_pretrained(3),
    "no catalogue": lambda pipe: pipe.set_catalogue(None),
    "frame as catalogue": lambda pipe: pipe.set_catalogue(pipe.items),
    "no tokenizer": lambda pipe: GenSARPipeline(pipe.model, None),
    "number as card": lambda pipe: GenSARPipeline(pipe.model, pipe.tokenizer, card=3),
    "no folder of a tokenizer": lambda pipe: GenSARTokenizer.from_pretrained(None),
    "no folder of a model": lambda pipe: SASRecModel.from_pretrained(None),
    "no table's folder": lambda pipe: IdentifierTable.load(None),
    "no folder for a table": lambda pipe: pipe.tokenizer.identifiers.save(None),
    "no ids to remove": lambda pipe: pipe.tokenizer.identifiers.remove_items(None),
    "no data's folder": lambda pipe: InteractionDataset.load(None),
    "table to train on": lambda pipe: train(pipe.items, GenSARTrainingArguments("films")),
    "table in a trainer": lambda pipe: GenSARTrainer(pipe, GenSARTrainingArguments("films"), pipe.items),
    "too many suggestions": lambda pipe: pipe.suggest_queries(HISTORY, top_k=101),
    "too many answers": lambda pipe: pipe.recommend([HISTORY] * 500_000, top_k=12),
    "too many events": lambda pipe: pipe.recommend([CLICK] * 1_000_001),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_get_one_sentence(events_pipe: GenSARPipeline, case: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is looked at below
        WRONG[case](events_pipe)
    message = str(caught.value)
    assert message[-1] in ".?"
    assert len(message) < 500
    assert "\n" not in message
    assert "gensar_hf" in str(caught.traceback[-1].path)


def test_a_stream_is_read_as_far_as_it_says(events_pipe: GenSARPipeline) -> None:
    assert events_pipe.recommend(Endless()) == events_pipe.recommend([CLICK, CLICK])


def test_arrays_and_columns_are_lists(events_pipe: GenSARPipeline) -> None:
    expected = events_pipe.search(QUERIES[:2], top_k=2)
    assert events_pipe.search(pd.Series(QUERIES[:2], index=[5, 3]), None, top_k=2) == expected
    assert events_pipe.rank(HISTORY, np.array(["film-1", "film-2"])) == events_pipe.rank(HISTORY, ["film-1", "film-2"])


def test_an_empty_list_is_one_history(events_pipe: GenSARPipeline) -> None:
    assert events_pipe.recommend([], top_k=2) == events_pipe.recommend([[]], top_k=2)[0]


@pytest.mark.parametrize("kind", ["texts", "causal"])
@pytest.mark.parametrize(
    "query", ["\ud83d", "space \udfff", "\x00", "\u200b", "🧼🧴", "红色 肥皂", "x" * 10_000, "the of", "."]
)
def test_any_text_is_a_query(pipe: GenSARPipeline, query: str) -> None:
    history = [CLICK, {"query": query}, {**CLICK, "query": query}]
    everything = pipe.tokenizer.identifiers.item_ids
    found = pipe.search(query, history, top_k=12, explain=True)
    assert sorted(item_ids(found)) == sorted(everything)
    ranked = pipe.rank([history] * 2, [everything] * 2, [query, "space"])
    assert [answer["score"] for answer in ranked[0]] == pytest.approx([answer["score"] for answer in found], abs=1e-4)
    assert len(pipe.rank(history, everything, query, method="beam_search")) == 12


# ---- memory


@pytest.mark.parametrize("kind", ["tokens", "texts", "causal"])
def test_more_answers_than_beams_are_scored_without_a_search(
    pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = {"top_k": 12, "exclude_seen": True, "explain": True}
    searched = pipe.recommend(HISTORIES, **requests), pipe.search(QUERIES, HISTORIES, **requests)
    monkeypatch.setattr(item_scores, "MAX_BEAMS", 4)
    scored = pipe.recommend(HISTORIES, **requests), pipe.search(QUERIES, HISTORIES, **requests)
    for one, other in zip([*searched[0], *searched[1]], [*scored[0], *scored[1]], strict=True):
        assert item_ids(one) == item_ids(other)
        assert [answer["score"] for answer in one] == pytest.approx([answer["score"] for answer in other], abs=1e-4)


def test_many_beams_and_items_make_small_batches(events_pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, encode = [], events_pipe._encode

    def watched(histories: list, *arguments: Any) -> Any:
        sizes.append(len(histories))
        return encode(histories, *arguments)

    monkeypatch.setattr(events_pipe, "_encode", watched)
    many = [HISTORY[:1]] * 40
    events_pipe.recommend(many)
    assert sizes == [32, 8]
    for constant, value in (("_MAX_PAIRS", 16 * 900), ("_MAX_SCORES", 16 * 12)):
        with monkeypatch.context() as patch:
            patch.setattr(f"gensar_hf.pipeline.{constant}", value)
            sizes.clear()
            events_pipe.recommend(many)
            assert sizes == [16, 16, 8]


# ---- NaN


@pytest.mark.parametrize(
    "weight", ["encoder.items.table.weight", "encoder.items.bias", "lm_head.weight", "item_weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(pipelines: dict, weight: str, value: float) -> None:
    pipe = copy.deepcopy(pipelines["texts"])
    if weight == "item_weight":
        pipe.model.config.item_weight = value
    else:
        pipe.model.get_parameter(weight).data[3:4] = value
    everything = pipe.tokenizer.identifiers.item_ids
    calls = [lambda: pipe.recommend(HISTORY), lambda: pipe.search("space"), lambda: pipe.rank(HISTORY, everything)]
    if weight == "lm_head.weight":
        calls.append(lambda: pipe.suggest_queries(HISTORY))
    for call in calls:
        with pytest.raises(ValueError, match="The model's scores are NaN or infinite"):
            call()
