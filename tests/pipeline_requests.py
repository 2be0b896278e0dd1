"""Requests to the tiny pipelines of conftest.py, and what is looked at in their answers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from gensar_hf import GenSARPipeline
from gensar_hf.data import Behavior
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

HISTORY = [{"item_id": "film-2"}, {"query": "comedy 1990s"}, {"item_id": "film-3", "query": "comedy 1990s"}]
HISTORIES = [HISTORY, [], [{"item_id": "film-9"}, {"item_id": "film-9"}, {"query": "space"}], HISTORY[:1]]
QUERIES = ["space adventure", "horror", "Comedy 1990s", "a film about nothing"]


def item_ids(answers: list[dict]) -> list[str]:
    return [answer["item_id"] for answer in answers]


def assert_same_answers(batch: list[list[dict]], singles: list[list[dict]], key: str) -> None:
    assert len(batch) == len(singles)
    for one, other in zip(batch, singles, strict=True):
        assert [answer[key] for answer in one] == [answer[key] for answer in other]
        assert [answer["score"] for answer in one] == pytest.approx([answer["score"] for answer in other], abs=1e-4)


def answers_in(folder: Path) -> pd.DataFrame:
    """All parts of bulk answers; the names of the parts must name their rows' place without a gap."""
    paths = sorted(folder.glob("part-*.parquet"))
    bounds = [path.stem.split("-")[1:] for path in paths]
    assert [int(first) for first, _ in bounds] == [0, *(int(end) for _, end in bounds[:-1])]
    return pd.concat([pq.read_table(path).to_pandas() for path in paths], ignore_index=True)


def weighted_by_vector(pipe: GenSARPipeline, history: list, query: str | None) -> np.ndarray:
    """What a model's item vectors and texts add to the score of each item; zeros of a model without."""
    items, tokenizer = getattr(getattr(pipe.model, "encoder", None), "items", None), pipe.tokenizer
    if items is None:
        return np.zeros(12)
    behavior = Behavior.SEARCHED_ITEM if query else Behavior.RECOMMENDED_ITEM
    inputs = tokenizer.encode_request(history, query, behavior.token)
    del inputs["decoder_input_ids"]
    with torch.no_grad():
        last = pipe.model.encoder(**inputs).last_hidden_state[:, -1]
        logits = items.logits(last, torch.tensor([1 if query else 0]))[0]
        if query and tokenizer.catalogue.texts is not None:
            scores = torch.from_numpy(tokenizer.catalogue.texts.scores([query]))
            logits = logits + (pipe.model.encoder.text.weights(last, scores)[0, :, None] * scores[0]).sum(dim=0)
    return pipe.model.config.item_weight * logits.log_softmax(dim=-1).numpy()


def continued(tokenizer: GenSARTokenizer, inputs: dict, codes: np.ndarray) -> tuple[dict, int]:
    """What a forward needs to predict an identifier's codes from a request, and the place of the first one's logits.

    `codes` begin with the behavior token.
    """
    own = dict(inputs)
    if tokenizer.decoder_only:
        own["input_ids"] = torch.cat([inputs["input_ids"], torch.from_numpy(codes[None, 1:-1])], dim=1)
        own["attention_mask"] = torch.ones_like(own["input_ids"])
        return own, inputs["input_ids"].shape[1] - 1
    own["decoder_input_ids"] = torch.tensor([[tokenizer.pad_token_id, *codes[:-1].tolist()]])
    return own, 1
