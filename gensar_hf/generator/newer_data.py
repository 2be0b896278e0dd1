"""A trained generator goes on with newer interactions: what is read, what is trained, what is asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gensar_hf.data import (
    InteractionLog,
    Requests,
    UserEvents,
    append_log,
    cut_in_time,
    events_from_log,
    load_log,
    newer_starts,
)
from gensar_hf.errors import InputError
from gensar_hf.generator.adapters import AdapterBase, add_adapter, grow_to, lora_config
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tasks import TrainingExamples
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

if TYPE_CHECKING:
    from peft import PeftModel

GROUPS = ("known items", "new items", "new items without clicks")


@dataclass(frozen=True)
class NewerData:
    """The log of a trained model gone on, over its catalogue with new items.

    The items of the events, and of `after`, are the known ones, then those new ones that training sees clicked, then
    the other new ones.

    Attributes:
        events: older and newer interactions.
        starts: `(num_users,)` event index, where each user's newer events begin.
        train_ends: `(num_users,)` event index, where those begin that are not trained on.
        requests: task → the clicks among these.
        before: the catalogue in which all new items borrow.
        after: the one in which those that training sees clicked are learned, and lend to themselves, too.
    """

    events: UserEvents
    starts: np.ndarray
    train_ends: np.ndarray
    requests: dict[str, Requests]
    before: IdentifierTable
    after: IdentifierTable

    @classmethod
    def of_tables(
        cls,
        catalogue: IdentifierTable,
        older: pd.DataFrame,
        newer: str | os.PathLike[str] | pd.DataFrame,
        test_share: float = 0.5,
        validation: bool = False,
    ) -> "NewerData":
        """Put older and newer interactions together and cut the newer ones in time.

        Args:
            catalogue: the model's, with new items added by `add_items`.
            older: the interactions of the log that the model was trained on, see `InteractionLog`.
            newer: a table of newer ones, as `load_log` takes it.
            test_share: of the newer interactions, the newest, that are asked for and not trained on.
            validation: do without these, and ask for the same share of the others instead: to choose settings with.

        Raises:
            InputError: a table that cannot be used, unknown items, newer interactions that are not newer.
        """
        rows = load_log(_items(catalogue), newer, ["text"]).interactions
        times = rows["timestamp"].to_numpy()
        test_cut = _latest(times, test_share)
        cut = _latest(times[times < test_cut], test_share) if validation else test_cut
        added = set(catalogue.item_ids[catalogue.num_trained :])
        after = catalogue.mark_trained(sorted(added & set(rows["item_id"][times < cut])))
        items = _items(after)
        older_log = InteractionLog(items, older, ("text",))
        newer_log = InteractionLog(items[:0], rows, ("text",))
        events = events_from_log(append_log(older_log, newer_log))
        starts = newer_starts(older_log, newer_log, events)
        split = cut_in_time(events, cut, test_cut)
        held_out = split.validation if validation else split.test
        requests = {
            task: part.subset(np.flatnonzero(part.targets >= starts[part.users])) for task, part in held_out.items()
        }
        return cls(events, starts, split.train_ends, requests, catalogue, after)

    @property
    def num_known(self) -> int:
        """Items that the model was trained on."""
        return self.before.num_trained

    @property
    def num_marked(self) -> int:
        """New items that training sees clicked."""
        return self.after.num_marked

    @property
    def item_texts(self) -> Sequence[str]:
        """One an item."""
        return _items(self.after)["text"].tolist()

    def item_groups(self) -> dict[str, tuple[int, int]]:
        """Kinds of items: the first one of each, and the one after its last."""
        bounds = [0, self.num_known, self.num_known + self.num_marked, self.after.num_items]
        return dict(zip(GROUPS, pairwise(bounds), strict=True))

    def training_log(self, tokenizer: GenSARTokenizer) -> TrainingExamples:
        """What training reads and asks for; the tokenizer's catalogue is `after`."""
        return TrainingExamples(tokenizer, self.events, self.train_ends, self.item_texts, self.starts)

    def with_adapter(
        self,
        model: GenSARForConditionalGeneration,
        name: str,
        tokenizer: GenSARTokenizer,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
    ) -> "tuple[PeftModel, AdapterBase]":
        """An adapter for the model: LoRA, all behavior and code tokens, and vectors of the new items, if it has any.

        Args:
            model: as it was loaded; it is changed in place.
            name: where from.
            tokenizer: with the catalogue `after`.
            rank: of the LoRA matrices.
            alpha: see `lora_config`.
            dropout: before the LoRA matrices.

        Returns:
            the model with the adapter, and what is saved beside it.
        """
        learned = slice(self.num_known, self.num_known + self.num_marked)
        neighbors, item_rows = None, list[int]()
        if getattr(model.config, "num_items", 0) and self.num_marked:  # no decoder alone has any
            places = [self.before.index_of(item_id) - self.num_known for item_id in self.after.item_ids[learned]]
            neighbors, item_rows = self.before.neighbors[places], list(range(learned.start, learned.stop))
        base = AdapterBase.of(model, name, neighbors=neighbors)
        grow_to(model, base)
        tokens = tokenizer.code_token_ids.tolist()
        return add_adapter(model, lora_config(model, tokens, rank, alpha, dropout, item_rows=item_rows)), base


def _latest(times: np.ndarray, share: float) -> float:
    """The moment at which the latest share of some times begins."""
    if len(times) < 2:
        raise InputError("There are too few newer interactions to train on some and ask for others; give more of them.")
    place = round((1 - share) * len(times))
    return float(np.sort(times)[min(max(place, 1), len(times) - 1)])


def _items(table: IdentifierTable) -> pd.DataFrame:
    texts = table.texts or table.titles
    if texts is None:
        raise InputError("The model's identifiers.parquet holds no texts of the items; train the run again.")
    return pd.DataFrame({"item_id": table.item_ids, "text": texts})
