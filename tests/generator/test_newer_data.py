"""Newer interactions and new items behind those that a model was trained on: what becomes of them, and an adapter."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import Trainer, TrainingArguments

from gensar_hf.data import RECOMMENDATION, SEARCH
from gensar_hf.errors import InputError
from gensar_hf.generator.newer_data import NewerData
from gensar_hf.generator.packing import ExampleCollator, ExampleRows
from gensar_hf.generator.tasks import ExampleSampler
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.pipeline import GenSARPipeline

COLUMNS = ["user_id", "item_id", "timestamp", "query"]
OLDER = pd.DataFrame(
    [("ann", "film-0", 1.0, ""), ("ann", "film-1", 2.0, "x"), ("bob", "film-2", 3.0, "")], columns=COLUMNS
)
# new-2 is clicked in what is trained on, new-1 later alone, new-3 never
NEWER = pd.DataFrame(
    [("ann", "new-2", 5.0, ""), ("bob", "film-4", 6.0, "y"), ("cem", "film-3", 7.0, ""), ("cem", "new-2", 8.0, ""),
     ("ann", "new-1", 9.0, "z"), ("bob", "film-5", 10.0, ""), ("cem", "film-0", 11.0, ""), ("dan", "new-2", 12.0, "")],
    columns=COLUMNS,
)  # fmt: skip


@pytest.fixture
def catalogue(identifiers: IdentifierTable) -> IdentifierTable:
    """The twelve known films, and three new ones that borrow."""
    free = np.array([[3, 3, code, code] for code in range(3)])
    return replace(
        identifiers,
        item_ids=[*identifiers.item_ids, "new-1", "new-2", "new-3"],
        semantic_codes=np.concatenate([identifiers.semantic_codes, free]),
        collaborative_codes=np.concatenate([identifiers.collaborative_codes, free]),
        titles=[*identifiers.titles, "One", "Two", "Three"],
        texts=[*identifiers.texts, "One", "Two", "Three"],
        available=np.ones(15, dtype=bool),
        neighbors=np.array([[0, 1], [2, 3], [4, 5]]),
    )


def asked(data: NewerData, task: str) -> list[tuple[str, str]]:
    requests, events = data.requests[task], data.events
    users = [events.user_ids[user] for user in requests.users]
    return list(zip(users, (events.item_ids[item] for item in requests.target_items), strict=True))


def test_the_newest_are_asked_for_and_the_others_trained_on(catalogue: IdentifierTable) -> None:
    data = NewerData.of_tables(catalogue, OLDER, NEWER, test_share=0.5)
    events = data.events
    assert events.user_ids == ["ann", "bob", "cem", "dan"]
    # ann: 0 ?x 1 | new-2 · ?z new-1; bob: 2 | ?y 4 · 5; cem: | 3 new-2 · 0; dan: | · new-2
    assert (data.starts - events.offsets[:-1]).tolist() == [3, 1, 0, 0]
    assert (data.train_ends - events.offsets[:-1]).tolist() == [4, 3, 2, 0]
    assert asked(data, RECOMMENDATION) == [("bob", "film-5"), ("cem", "film-0"), ("dan", "new-2")]
    assert asked(data, SEARCH) == [("ann", "new-1")]
    assert data.after.item_ids[12:] == events.item_ids[12:] == ["new-2", "new-1", "new-3"]
    assert (data.num_known, data.num_marked, data.after.neighbors.tolist()) == (12, 1, [[12, 2], [0, 1], [4, 5]])
    assert data.item_groups() == {"known items": (0, 12), "new items": (12, 13), "new items without clicks": (13, 15)}
    assert data.item_texts[12:] == ["Two", "One", "Three"]
    assert (data.before.num_trained, data.before.item_ids) == (12, catalogue.item_ids)


def test_validation_does_without_the_newest(catalogue: IdentifierTable) -> None:
    data = NewerData.of_tables(catalogue, OLDER, NEWER, test_share=0.5, validation=True)
    assert asked(data, RECOMMENDATION) == [("cem", "film-3"), ("cem", "new-2")]
    assert asked(data, SEARCH) == []
    assert (data.train_ends - data.events.offsets[:-1]).tolist() == [4, 3, 0, 0]


def test_what_cannot_be_used_is_refused(catalogue: IdentifierTable) -> None:
    with pytest.raises(InputError, match="too few newer interactions"):
        NewerData.of_tables(catalogue, OLDER, NEWER[:1])
    with pytest.raises(InputError, match="'film-99' is not an item"):
        NewerData.of_tables(catalogue, OLDER, NEWER.replace("film-4", "film-99"))
    with pytest.raises(InputError, match="not newer"):
        NewerData.of_tables(catalogue, OLDER, NEWER.assign(timestamp=range(8)))
    with pytest.raises(InputError, match="holds no texts"):
        NewerData.of_tables(replace(catalogue, texts=None, titles=None), OLDER, NEWER)


def test_an_adapter_is_trained_on_newer_clicks(
    kind: str,
    pipelines: dict[str, GenSARPipeline],
    model_dirs: dict[str, Path],
    catalogue: IdentifierTable,
    tmp_path: Path,
) -> None:
    data = NewerData.of_tables(catalogue, OLDER, NEWER)
    tokenizer = GenSARTokenizer.from_pretrained(model_dirs[kind])
    tokenizer.attach_identifiers(data.after)
    model = copy.deepcopy(pipelines[kind].model)
    num_items = getattr(model.config, "num_items", 0)
    if num_items:
        vectors = model.encoder.items.table.weight.detach().clone()
    with_adapter, base = data.with_adapter(model, "base", tokenizer)
    assert getattr(model.config, "num_items", 0) == (13 if num_items else 0)
    if num_items:
        assert base.neighbors.tolist() == [[2, 3]]
        np.testing.assert_allclose(model.encoder.items.table.weight[12].detach(), vectors[[2, 3]].mean(0), rtol=1e-6)
    is_packed = tokenizer.history_encoding == "events"
    log = data.training_log(tokenizer)
    assert [data.events.item_ids[item] for item in np.flatnonzero(log.num_clicks())] == ["film-3", "film-4", "new-2"]
    sampler = ExampleSampler(log, window=8, max_target_tokens=20 if is_packed else 0, item_vectors=num_items > 0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
        max_steps=12, per_device_train_batch_size=8, learning_rate=2e-2, logging_steps=3, lr_scheduler_type="constant",
    )  # fmt: skip
    rows = ExampleRows(sampler, 96, 10 if is_packed else 0)
    trainer = Trainer(model=with_adapter, args=arguments, train_dataset=rows, data_collator=ExampleCollator(tokenizer))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
