"""Training examples: the six tasks drawn from users' events, packed into rows, collated into batches.

An example is an encoder input (an instruction and events) and one or more targets. A target sees the instruction and
the first events, and is answered by the decoder with a response, or by the item vectors with an item. Row `i` of a
training is a pure function of the seed and `i`, so that a resumed training reads the rows of an uninterrupted one.

With `history_encoding="events"` a row packs several examples: a whole history with all its targets, or many short
examples, none of which sees another. With `"tokens"`, as in the paper, a row is one example with one target.

Rows differ in length and a batch is as long as its longest row. An optimizer step is therefore computed in several
batches of rows of similar length (`ExampleRows.rows_per_step`, `batches_per_step`): its gradient is the sum over its
rows, in any order and grouping.
"""

import math
import zlib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from gensar_hf.catalogue_loss import is_sampled, sample_items
from gensar_hf.data import Behavior, UserEvents
from gensar_hf.data.text_queries import TextQueries
from gensar_hf.errors import InputError
from gensar_hf.generator.history import EventArrays
from gensar_hf.generator.item_vectors import NO_ITEM
from gensar_hf.generator.modeling_gensar import IGNORED_LABEL
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS, Task
from gensar_hf.generator.text_matching import QueryReading, TextIndex
from gensar_hf.generator.text_sampling import SampledTexts
from gensar_hf.generator.tokenization_gensar import (
    NO_EVENT,
    GenSARTokenizer,
    pad_left,
    pad_right,
    queries_of,
    query_inputs,
)

DEFAULT_TASK_WEIGHTS: dict[Task, float] = {
    Task.NEXT_RECOMMENDED_ITEM: 0.31,
    Task.NEXT_QUERY: 0.05,
    Task.NEXT_SEARCHED_ITEM: 0.24,
    Task.DESCRIPTION_TO_IDENTIFIER: 0.03,
    Task.IDENTIFIER_TO_DESCRIPTION: 0.02,
    Task.AD_HOC_SEARCH: 0.35,
}
_CONVERTED_SHARE = 0.25  # of the recommended clicks of a history that become searches, times `text_query_share`
MOST_EXAMPLES = 24  # packed into a row
_ENCODED_QUERIES, _MOST_ENCODED_QUERIES = 4, 16_000  # made from the texts, an item and in all
_BEHAVIOR_OF_TASK = {task: behavior for behavior, task in HISTORY_TASKS.items()}


@dataclass(frozen=True)
class Target:
    """A response `(num_tokens,)` that follows the encoder positions before `end`."""

    end: int
    response: np.ndarray


@dataclass(frozen=True)
class ItemTarget:
    """A clicked item (row of the identifier table) that follows the encoder positions before `end`."""

    end: int
    item: int
    behavior: Behavior


@dataclass(frozen=True)
class Example:
    """An encoder input and its targets.

    Attributes:
        task: which task it is an example of.
        events: `events[0]` is the instruction; each is `(num_tokens,)` token ids.
        targets: answered by the decoder.
        event_items: `(num_events,)` item clicked in each event, -1 for none; None: no clicks.
        item_targets: answered by the item vectors. Each costs one product only, so all clicks of the window are
            targets, whatever the task.
        queries: the query in each event, "" for none.
    """

    task: Task
    events: list[np.ndarray]
    targets: list[Target]
    event_items: np.ndarray | None = None
    item_targets: Sequence[ItemTarget] = ()
    queries: Sequence[str] = ()

    @property
    def num_positions(self) -> int:
        """Encoder positions with `history_encoding="events"`."""
        return len(self.events)

    @property
    def num_target_tokens(self) -> int:
        """Tokens of all responses."""
        return sum(len(target.response) for target in self.targets)


Row = list[Example]


class TrainingExamples:
    """The events that training may read, as tokens. Items are matched to the identifier table by id, not by position.

    Added items that are not marked as trained (`IdentifierTable.mark_trained`) are read in histories, but are not
    targets: they are scored by their neighbors.

    Args:
        tokenizer: with the identifiers of all items of the events.
        events: training reads only `events.offsets[u]:train_ends[u]` of each user.
        train_ends: `(num_users,)`, see `Split`.
        target_starts: `(num_users,)` event index; earlier events are history only. None: all events may be targets.
        text_queries: makes queries from the items' texts; None: only the log's own queries are trained on.

    Attributes:
        item_rows: `(events.num_items,)` row of each item in the identifier table.
        items: `(num_events,)` the same for each event, -1 for a query.
        query_tokens: tokens of the queries in training events, by query.
        is_target: `(num_events,)` bool, events that may be targets.
        described: `(num_described,)` rows that have a text.
        typed: `(num_typed,)` items of the events that text queries are made for, those that may be targets.
        encoded_queries: item of the events → queries made from its text whose meaning training knows.
        searched: `(num_searched,)` search clicks that may be targets.

    Raises:
        InputError: an item of the events is not in the identifier table.
    """

    def __init__(
        self,
        tokenizer: GenSARTokenizer,
        events: UserEvents,
        train_ends: np.ndarray,
        target_starts: np.ndarray | None = None,
        text_queries: TextQueries | None = None,
    ) -> None:
        self.text_queries = text_queries
        self.tokenizer, self.events, self.train_ends = tokenizer, events, train_ends
        self._catalogue = tokenizer.catalogue
        table = self._catalogue.identifiers
        self.item_rows = self._catalogue.item_rows(events.item_ids)
        self.items = np.where(events.items < 0, NO_ITEM, self.item_rows[events.items])

        users, positions = events.event_users(), np.arange(events.num_events)
        is_train = positions < train_ends[users]
        starts = events.offsets[:-1] if target_starts is None else target_starts
        num_trained = table.num_trained + table.num_marked
        may_be_target = is_train & (positions >= starts[users]) & (self.items < num_trained)
        self.is_target = may_be_target & ~_is_twin(events)
        self.searched = np.flatnonzero(may_be_target & (events.behaviors == Behavior.SEARCHED_ITEM))

        used = np.unique(events.queries[is_train & (events.queries >= 0)])
        texts = [events.query_texts[query] for query in used]
        self.query_tokens = {text: tokenizer.query_tokens(text, self._catalogue) for text in texts}
        self._item_texts = table.texts or table.titles or [""] * table.num_items
        self.described = np.flatnonzero([bool(text.strip()) for text in self._item_texts[:num_trained]])
        is_typed = [bool(text_queries and text_queries.title(item)) for item in range(events.num_items)]
        typed = np.flatnonzero(np.array(is_typed, dtype=bool) & (self.item_rows < num_trained))
        self.typed = typed[np.argsort(self.item_rows[typed])]  # draws do not depend on the order of the items
        self.encoded_queries: dict[int, list[str]] = {}
        if self._catalogue.texts is not None:
            if text_queries is not None:
                self.encoded_queries = self._draw_encoded_queries(text_queries)
            self._catalogue.texts.remember([*texts, *chain.from_iterable(self.encoded_queries.values())])
            if text_queries is not None:
                self._add_vague_queries(self._catalogue.texts, text_queries)

    def _draw_encoded_queries(self, text_queries: TextQueries) -> dict[int, list[str]]:
        """A text encoder takes milliseconds for a query, so that it reads a part of them only, before the training."""
        rng, items = np.random.default_rng(0), self.typed
        num_queries = max(1, min(_ENCODED_QUERIES, _MOST_ENCODED_QUERIES // max(1, len(items))))
        if len(items) > _MOST_ENCODED_QUERIES:
            items = np.sort(rng.choice(items, _MOST_ENCODED_QUERIES, replace=False))
        return {item: [text_queries.draw(item, rng) for _ in range(num_queries)] for item in items.tolist()}

    def _add_vague_queries(self, texts: TextIndex, text_queries: TextQueries) -> None:
        """To each item a query that means it, in words that are not in its text, as in "sled dogs in the snow".

        Nobody has written such queries for this catalogue. Their words are those of other items, which mislead; their
        meaning is the item's, blurred to a cosine of .4 to .8. So the model learns to go by the meaning where no word
        fits well.
        """
        rng = np.random.default_rng(1)
        vague: dict[str, np.ndarray] = {}
        for item, queries in self.encoded_queries.items():
            others = [text_queries.title_words(other) for other in rng.choice(self.typed, 1 + rng.integers(4))]
            words = [words[rng.integers(len(words))] for words in others]
            # Half of the words are in no text at all.
            words = ["".join(rng.permutation(list(word))) if rng.random() < 0.5 else word for word in words]
            blur, cosine = rng.normal(size=texts.dim), rng.uniform(0.4, 0.8)
            meaning = texts.vectors[self.item_rows[item]].astype(np.float32)
            query = " ".join(words)
            vague[query] = cosine * meaning + math.sqrt(1 - cosine**2) * blur / np.linalg.norm(blur)
            queries.append(query)
        texts.remember_as(vague)

    def text_query(self, item: int, rng: np.random.Generator) -> str:
        """A query made from the text of an item of the events; half of them are `encoded_queries`."""
        if self.text_queries is None:
            return ""
        encoded = self.encoded_queries.get(item)
        if encoded and rng.random() < 0.5:
            return encoded[rng.integers(len(encoded))]
        return self.text_queries.draw(item, rng)

    def read_items(self, events: EventArrays) -> np.ndarray:
        """The rows whose item vectors represent the events, -1 for a query."""
        return self._catalogue.trained_rows(np.array(events.items, dtype=np.int64))

    def event_arrays(self, window: np.ndarray | slice) -> EventArrays:
        """Some events, their items as rows of the identifier table."""
        return EventArrays.of_user_events(self.events, window, self.item_rows)

    def event_tokens(self, events: EventArrays) -> list[np.ndarray]:
        """Token ids of some events, each `(num_tokens,)`, the behavior token first."""
        new = {query for query in events.queries if query and query not in self.query_tokens}
        made_up = {query: self.tokenizer.query_tokens(query, self._catalogue) for query in new}
        return self.tokenizer.event_tokens(events, ChainMap(made_up, self.query_tokens), self._catalogue)

    def num_clicks(self) -> np.ndarray:
        """`(num_table_items,)` target clicks on each row of the identifier table."""
        clicked = self.items[self.is_target & (self.items >= 0)]
        return np.bincount(clicked, minlength=self._catalogue.identifiers.num_items)

    def item_text_tokens(self, item: int) -> np.ndarray:
        """`(num_tokens,)` words of a row's text, of its title if the table has no texts."""
        return self.tokenizer.text_ids(self._item_texts[item])

    def response(self, event: int, tokens: np.ndarray) -> np.ndarray:
        """What the decoder should answer where an event is next: its tokens, and an end token after a query."""
        is_query = self.events.behaviors[event] == Behavior.SEARCH_QUERY
        return np.append(tokens, self.tokenizer.eos_token_id) if is_query else tokens

    def identifier(self, item: int, behavior: Behavior) -> np.ndarray:
        """`(1 + num_levels,)` behavior token and code tokens of a row."""
        return self._catalogue.item_token_ids[behavior][item]


def _is_twin(events: UserEvents) -> np.ndarray:
    """`(num_events,)` bool: the user already has a click on the same item at the same moment.

    In the authors' Amazon data a review is a recommendation event and a search click at once. The second one as a
    target with the first in sight would only teach to copy.
    """
    keys = {"user": events.event_users(), "time": events.timestamps, "item": events.items}
    return pd.DataFrame(keys).duplicated().to_numpy() & (events.items >= 0)


class ExampleSampler:
    """Draws examples.

    Args:
        examples: what may be read.
        task_weights: share of each task; 0 or missing switches a task off.
        window: events of a history; default: the tokenizer's `max_history_events`.
        max_target_tokens: bound on the response tokens of an example; further targets are dropped at random. 0: one
            target per example, as in the paper, which is always so with `history_encoding="tokens"`.
        recent_share: share of histories that end at the user's last target of the task, as requests do when a model
            serves; the others end at a random target.
        seed: of the draws.
        item_vectors: whether the model has item vectors (`config.num_items > 0`) and so needs item targets; ignored
            with `history_encoding="tokens"`.
        text_query_share: share of the ad-hoc searches whose query is made from the item's text, and of a searching
            user's recommended clicks that become searches for such a query. 1 if the log has no queries.

    Raises:
        InputError: no task has an example.
    """

    def __init__(
        self,
        examples: TrainingExamples,
        task_weights: Mapping[Task, float] | None = None,
        window: int | None = None,
        max_target_tokens: int = 120,
        recent_share: float = 0.5,
        seed: int = 0,
        item_vectors: bool = True,
        text_query_share: float = 0.7,
    ) -> None:
        tokenizer = examples.tokenizer
        self.examples, self.seed, self.recent_share = examples, seed, recent_share
        self.is_packed = tokenizer.history_encoding == "events"
        self.window = tokenizer.max_history_events if window is None else window
        self.max_target_tokens = max_target_tokens if self.is_packed else 0
        self.item_vectors = item_vectors and self.is_packed
        self._instructions: dict[tuple[Task, int, str], np.ndarray] = {}
        weights = {task: weight for task, weight in (task_weights or DEFAULT_TASK_WEIGHTS).items() if weight > 0}
        # Events that are targets of each history task, and the users who have some.
        self._targets = {
            task: np.flatnonzero(examples.is_target & (examples.events.behaviors == _BEHAVIOR_OF_TASK[task]))
            for task in weights
            if task in _BEHAVIOR_OF_TASK
        }
        self.text_query_share = text_query_share if len(examples.typed) else 0.0
        if self.text_query_share and not len(examples.searched):
            self.text_query_share = 1.0
        if self.text_query_share and Task.NEXT_SEARCHED_ITEM in weights and not len(examples.searched):
            # Users who never searched search for what they clicked.
            clicked = examples.events.behaviors == Behavior.RECOMMENDED_ITEM
            self._targets[Task.NEXT_SEARCHED_ITEM] = np.flatnonzero(examples.is_target & clicked)
        users = examples.events.event_users()
        self.users = {task: np.unique(users[targets]) for task, targets in self._targets.items()}
        sources = {
            Task.AD_HOC_SEARCH: examples.typed if self.text_query_share else examples.searched,
            Task.DESCRIPTION_TO_IDENTIFIER: examples.described,
            Task.IDENTIFIER_TO_DESCRIPTION: examples.described,
            **self._targets,
        }
        possible = {task: weight for task, weight in weights.items() if len(sources[task])}
        if not possible:
            raise InputError(
                f"None of the tasks {', '.join(weights)} has an example in the training events; check that users have "
                "at least two events before their held-out ones."
            )
        self.tasks = list(possible)
        self.probabilities = np.array(list(possible.values())) / sum(possible.values())
        self._cumulative = np.cumsum(self.probabilities) / self.probabilities.sum()

    def draw_task(self, rng: np.random.Generator) -> Task:
        """A task, by the weights."""
        # As `rng.choice(…, p=…)`, without its checks, which take longer than the draw.
        return self.tasks[self._cumulative.searchsorted(rng.random(), side="right")]

    def draw(self, task: Task, rng: np.random.Generator) -> Example:
        """An example of a task."""
        template = int(rng.integers(len(PROMPTS[task].templates)))
        if task in _BEHAVIOR_OF_TASK:
            return self._history_example(task, template, rng)
        if task is Task.AD_HOC_SEARCH:
            return self._ad_hoc_example(template, rng)
        return self._description_example(task, template, rng)

    def _history_example(self, task: Task, template: int, rng: np.random.Generator) -> Example:
        """A window of one user's training events; those with the task's behavior are targets."""
        examples, users = self.examples, self.users[task]
        user = users[rng.integers(len(users))]
        first, end = examples.events.offsets[user], examples.train_ends[user]
        all_targets = self._targets[task]
        candidates = all_targets[slice(*all_targets.searchsorted((first, end)))]
        # Every window contains a target. A single target is placed last; otherwise final targets would be over-sampled.
        is_recent = rng.random() < self.recent_share
        last = candidates[-1 if is_recent else rng.integers(len(candidates))]
        num_behind = 0 if self.max_target_tokens == 0 else rng.integers(max(1, self.window // 2))
        stop = int(min(end, last + 1 + num_behind))
        start = int(max(first, stop - self.window))
        in_window = candidates[slice(*candidates.searchsorted((start, stop)))]
        chosen = [int(last)] if self.max_target_tokens == 0 else in_window.tolist()
        events, places = examples.event_arrays(slice(start, stop)), np.arange(stop - start)
        if task is Task.NEXT_SEARCHED_ITEM and self.text_query_share:
            events, places, made = self._with_text_queries(events, start, last, rng)
            chosen = sorted({*chosen, *made}) if self.max_target_tokens else chosen
        tokens = examples.event_tokens(events)
        is_recommendation = task is Task.NEXT_RECOMMENDED_ITEM
        item_targets = self._item_targets(events, places, start, is_recommendation) if self.item_vectors else []
        targets = []
        for event in chosen:
            place = int(places[event - start])
            targets.append(Target(place + 1, examples.response(event, tokens[place])))
        targets = self._within_budget(targets, rng)
        num_read = max([target.end for target in targets] + [target.end for target in item_targets]) - 1
        event_items = np.append(NO_ITEM, examples.read_items(events)[:num_read])
        queries = ["", *queries_of(events)[:num_read]]
        instruction = self._instruction(task, template)
        return Example(task, [instruction, *tokens[:num_read]], targets, event_items, item_targets, queries)

    def _with_text_queries(
        self, events: EventArrays, start: int, last: int, rng: np.random.Generator
    ) -> tuple[EventArrays, np.ndarray, list[int]]:
        """Let a user search for some of the items that were recommended, with queries made from their texts.

        So the model learns what a typed title means behind a history, and not by itself alone.

        Args:
            events: of a window.
            start: index of its first event.
            last: index of the window's target; always a search afterwards.
            rng: draws the events and the queries.

        Returns:
            the events, each search after its new query event; the place of each of the window's events among them; the
            indices of the events that became searches.
        """
        examples = self.examples
        rows, places, made = list[tuple[int, int, str]](), [], []
        converted = rng.random(len(events.items)) < self.text_query_share * _CONVERTED_SHARE
        for offset, (behavior, item, query) in enumerate(zip(*events, strict=True)):
            event = start + offset
            is_made = converted[offset] or event == last
            if is_made and behavior == Behavior.RECOMMENDED_ITEM and examples.is_target[event]:
                text_query = examples.text_query(int(examples.events.items[event]), rng)
                if text_query:
                    behavior, query = Behavior.SEARCHED_ITEM, text_query
                    rows.append((Behavior.SEARCH_QUERY, NO_ITEM, query))
                    made.append(event)
            places.append(len(rows))
            rows.append((behavior, item, query))
        return EventArrays(*map(list, zip(*rows, strict=True))), np.array(places), made

    def _item_targets(
        self, events: EventArrays, places: np.ndarray, start: int, is_recommendation: bool
    ) -> list[ItemTarget]:
        """All clicks of a window, whose first event is `start`; `places` as in `_with_text_queries`.

        In an example of recommendation, a click right after its query is a target before the query as well: the user
        might have been shown the item. So recommendation learns from all clicks, as in JSR and models without queries.
        """
        examples, targets = self.examples, []
        window = slice(start, start + len(places))
        is_click = examples.is_target[window] & (examples.items[window] >= 0)
        for event in (np.flatnonzero(is_click) + start).tolist():
            place = int(places[event - start])
            behavior = Behavior(int(events.behaviors[place]))
            item, is_answer = int(examples.items[event]), place and events.behaviors[place - 1] == Behavior.SEARCH_QUERY
            targets.append(ItemTarget(place + 1, item, behavior))
            if is_recommendation and is_answer and behavior is Behavior.SEARCHED_ITEM:
                targets.append(ItemTarget(place, item, Behavior.RECOMMENDED_ITEM))
        return targets

    def _within_budget(self, targets: list[Target], rng: np.random.Generator) -> list[Target]:
        """As many targets as `max_target_tokens` allows, at least one, drawn at random, in their order."""
        lengths = np.array([len(target.response) for target in targets])
        if len(targets) == 1 or lengths.sum() <= self.max_target_tokens:
            return targets
        order = rng.permutation(len(targets))
        num_kept = max(1, int((np.cumsum(lengths[order]) <= self.max_target_tokens).sum()))
        return [targets[index] for index in np.sort(order[:num_kept])]

    def _ad_hoc_example(self, template: int, rng: np.random.Generator) -> Example:
        """A query without a history, and an item: a click of the log, or a query made from an item's text."""
        examples = self.examples
        if rng.random() < self.text_query_share:
            typed = int(examples.typed[rng.integers(len(examples.typed))])
            item, query = int(examples.item_rows[typed]), examples.text_query(typed, rng)
        else:
            click = int(examples.searched[rng.integers(len(examples.searched))])
            item, query = int(examples.items[click]), examples.events.query_texts[examples.events.queries[click]]
        (tokens,) = examples.event_tokens(EventArrays([Behavior.SEARCH_QUERY], [NO_ITEM], [query]))
        target = Target(2, examples.identifier(item, Behavior.SEARCHED_ITEM))
        item_targets = [ItemTarget(2, item, Behavior.SEARCHED_ITEM)] if self.item_vectors else []
        instruction = self._instruction(Task.AD_HOC_SEARCH, template)
        return Example(
            Task.AD_HOC_SEARCH, [instruction, tokens], [target], queries=["", query], item_targets=item_targets
        )

    def _description_example(self, task: Task, template: int, rng: np.random.Generator) -> Example:
        """An item's text and one of its identifiers, in either direction."""
        examples = self.examples
        item = int(examples.described[rng.integers(len(examples.described))])
        kind, behavior = (
            ("semantic", Behavior.SEARCHED_ITEM) if rng.random() < 0.5 else ("collaborative", Behavior.RECOMMENDED_ITEM)
        )
        identifier, text = examples.identifier(item, behavior)[1:], examples.item_text_tokens(item)
        instruction = self._instruction(task, template, kind)
        if task is Task.IDENTIFIER_TO_DESCRIPTION:
            response = np.append(text, examples.tokenizer.eos_token_id)
            return Example(task, [instruction, identifier], [Target(2, response)])
        # For the item vectors a text is a query for its item.
        item_targets = [ItemTarget(2, item, Behavior.SEARCHED_ITEM)] if self.item_vectors else []
        return Example(task, [instruction, text], [Target(2, identifier)], item_targets=item_targets)

    def _instruction(self, task: Task, template: int, kind: str = "") -> np.ndarray:
        key = (task, template, kind)
        if key not in self._instructions:
            self._instructions[key] = self.examples.tokenizer.text_ids(PROMPTS[task].instruction(template, kind))
        return self._instructions[key]


class ExampleRows(Dataset):
    """The rows of a training, in order; use `Trainer` with `train_sampling_strategy="sequential"`.

    Row `i` is a pure function of the sampler's seed, `rows_per_step` and `i`.

    Args:
        sampler: draws the examples. Its `max_target_tokens` bounds the responses of a row; further examples of the row
            have item targets alone.
        num_rows: steps × rows per step.
        max_positions: bound on the encoder positions of a row, beyond its first example; 0: one example per row.
            Default: room for one whole history, or 0 with `history_encoding="tokens"`.
        rows_per_step: rows of one optimizer step over all its batches and processes, sorted by length.
    """

    def __init__(
        self, sampler: ExampleSampler, num_rows: int, max_positions: int | None = None, rows_per_step: int = 1
    ) -> None:
        if max_positions is None:
            max_positions = 1 + sampler.window if sampler.is_packed else 0
        self.sampler, self.num_rows, self.max_positions = sampler, num_rows, max_positions
        self.rows_per_step = rows_per_step
        self._step, self._rows_of_step = -1, list[Row]()

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(index, self.rows_per_step)
        if step != self._step:  # rows are read in order, so that each step is drawn once
            first = step * self.rows_per_step
            rows = [self._draw(row) for row in range(first, min(first + self.rows_per_step, self.num_rows))]
            self._step, self._rows_of_step = step, sorted(rows, key=self._length)
        return self._rows_of_step[place]

    def _length(self, row: Row) -> tuple[int, int]:
        """The lengths that a batch is padded to, the costlier one first."""
        num_target_tokens = sum(example.num_target_tokens for example in row)
        if self.sampler.is_packed:
            return num_target_tokens, sum(example.num_positions for example in row)
        return sum(len(event) for example in row for event in example.events), num_target_tokens

    def _draw(self, index: int) -> Row:
        rng = np.random.default_rng((self.sampler.seed, index))
        task = self.sampler.draw_task(rng)
        row = [self.sampler.draw(task, rng)]
        num_positions, num_tokens = row[0].num_positions, row[0].num_target_tokens
        while num_positions < self.max_positions and len(row) < MOST_EXAMPLES:
            # All examples of a row are of one task, so that the task weights are shares of the rows.
            example = self.sampler.draw(task, rng)
            num_positions += example.num_positions
            if num_positions > self.max_positions:
                break
            num_tokens += example.num_target_tokens
            if num_tokens > self.sampler.max_target_tokens:
                # The decoder has enough to do. Item targets cost little, so that the row goes on with these.
                if not example.item_targets:
                    break
                example = replace(example, targets=[])
            row.append(example)
        return row


def batches_per_step(num_rows: int, history_encoding: str, min_rows: int = 4) -> int:
    """The number of batches of similar length in which a CPU computes the rows of a step fastest.

    More batches need less padding, but each one has a fixed cost (`tests/benchmarks/training_throughput.py`). Packed
    rows of events differ less in length than rows of tokens.

    Args:
        num_rows: rows of the step in one process; a multiple of the result.
        history_encoding: see `GenSARConfig`.
        min_rows: of a batch.
    """
    most = min(2 if history_encoding == "events" else 4, max(1, num_rows // min_rows))
    return max(number for number in range(1, most + 1) if num_rows % number == 0)


@dataclass
class ExampleCollator:
    """Rows → inputs of `GenSARForConditionalGeneration.forward`, or of a decoder-only model's `forward`."""

    tokenizer: GenSARTokenizer

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `labels` of some rows, and further inputs.

        For an encoder-decoder `decoder_input_ids`, with packed rows also the columns of packed targets and of item
        targets; for a decoder-only model `position_ids` and the number `logits_to_keep`.
        """
        if self.tokenizer.decoder_only:
            return self._prompts_with_responses(rows)
        is_packed = self.tokenizer.history_encoding == "events"
        arrays = self._packed(rows) if is_packed else self._single(rows)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _single(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        inputs, responses, start = [], [], self.tokenizer.pad_token_id
        for (example,) in rows:
            (target,) = example.targets
            inputs.append(self.tokenizer.assemble(example.events[0], example.events[1 : target.end]))
            responses.append(target.response)
        encoding = self.tokenizer.pad_rows([tokens for tokens, _ in inputs], [ids for _, ids in inputs])
        return {
            **encoding,
            "decoder_input_ids": pad_right([np.append(start, r[:-1]) for r in responses], start),
            "labels": pad_right(responses, IGNORED_LABEL),
        }

    def _prompts_with_responses(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Prompt and response in one row. All rows end together, so that only the last logits are computed.

        With a vocabulary of 50,000 and responses of five tokens, the logits of whole rows would take a good part of a
        step. The labels belong to the same last tokens; the model shifts them.
        """
        joined, responses = [], []
        for (example,) in rows:
            (target,) = example.targets
            prompt, _ = self.tokenizer.assemble(example.events[0], example.events[1 : target.end])
            joined.append(np.concatenate([prompt, target.response]))
            responses.append(target.response)
        encoding = self.tokenizer.pad_rows(joined, [])
        encoding["position_ids"] = (encoding["attention_mask"].cumsum(axis=1) - 1).clip(min=0)
        labels = pad_left(responses, IGNORED_LABEL)
        encoding["labels"] = np.pad(labels, ((0, 0), (1, 0)), constant_values=IGNORED_LABEL)
        tensors = {name: torch.from_numpy(array) for name, array in encoding.items()}
        return {**tensors, "logits_to_keep": 1 + max(map(len, responses))}

    def _packed(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        packed = [self._pack(row) for row in rows]
        encoding = self.tokenizer.pad_rows([row["input_ids"] for row in packed], [row["event_ids"] for row in packed])
        padding = {
            "encoder_starts": 0, "event_items": NO_ITEM,
            "item_positions": 0, "item_is_searched": 0, "item_labels": IGNORED_LABEL,
            "decoder_input_ids": self.tokenizer.pad_token_id, "decoder_target_ids": NO_EVENT,
            "decoder_starts": 0, "decoder_ends": 1, "labels": IGNORED_LABEL,
        }  # fmt: skip
        columns = {name: pad_right([row[name] for row in packed], value) for name, value in padding.items()}
        inputs = {**encoding, **columns}
        if columns["item_labels"].size and is_sampled(self._num_vectors):
            return {**inputs, **self._sampled_inputs(rows, columns)}
        texts = self.tokenizer.catalogue.texts
        if texts is None:
            return inputs
        distinct, queries = _distinct_queries(rows)
        reading, scores = texts.match(distinct, encode=False)
        return {**inputs, **self._text_inputs(rows, distinct, queries, reading, scores[:, :, : self._num_vectors])}

    @property
    def _num_vectors(self) -> int:
        table = self.tokenizer.catalogue.identifiers
        return table.num_trained + table.num_marked

    def _sampled_inputs(self, rows: Sequence[Row], columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A sample of a large catalogue, and how well the texts of these items fit the queries.

        The items whose texts fit best are in the sample: among a million items the draws would hardly ever meet them,
        but they take most of the probability.
        """
        labels, clicked = columns["item_labels"], columns["event_items"]
        present = [labels[labels != IGNORED_LABEL], clicked[(clicked >= 0) & (clicked < self._num_vectors)]]
        texts, terms = self._sampled_texts, []
        distinct, queries = _distinct_queries(rows)
        if texts is not None:
            terms = texts.weigh(distinct)
            present.append(texts.candidates(distinct, terms))
        # Drawn from what is in the batch, so that a batch has one sample, whichever process draws it.
        generator = torch.Generator().manual_seed(zlib.crc32(labels.tobytes()))
        sample = sample_items(torch.from_numpy(np.concatenate(present)), self._num_vectors, generator)
        inputs: dict[str, np.ndarray] = {
            "sampled_items": np.tile(sample.items.numpy(), (len(rows), 1)),
            "sample_log_weights": np.tile(sample.log_weights.numpy(), (len(rows), 1)),
        }
        if texts is None:
            return inputs
        reading, scores = texts.match(distinct, terms, sample.items.numpy())
        return {**inputs, **self._text_inputs(rows, distinct, queries, reading, scores)}

    @cached_property
    def _sampled_texts(self) -> SampledTexts | None:
        texts = self.tokenizer.catalogue.texts
        return None if texts is None else SampledTexts(texts, self._num_vectors)

    def _text_inputs(
        self,
        rows: Sequence[Row],
        distinct: Sequence[str],
        queries: Sequence[Sequence[str]],
        reading: QueryReading,
        scores: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """What the queries of the rows mean, and how well the texts of the items fit those that a click answers.

        Args:
            rows: of a batch.
            distinct: the queries in them.
            queries: for each row the query at each position, "" for none.
            reading: of the distinct queries.
            scores: `(num_distinct, 3, num_items)` of all items, or of a sample.
        """
        catalogue = self.tokenizer.catalogue
        answered = [[query for example in row for query in _answered_queries(example)] for row in rows]
        inputs = query_inputs(queries, lambda _: reading, catalogue)
        place_of = {query: place for place, query in enumerate(distinct)}
        columns = [list(dict.fromkeys(query for query in row if query)) for row in answered]
        num_columns = max(map(len, columns))
        if num_columns == 0:
            return inputs
        text_scores = np.zeros((len(rows), num_columns, *scores.shape[1:]), dtype=np.float32)
        for place, row in enumerate(columns):
            text_scores[place, : len(row)] = scores[[place_of[query] for query in row]]
        column_of = [{"": NO_ITEM, **{query: column for column, query in enumerate(row)}} for row in columns]
        item_queries = [
            np.array([column_of[place][query] for query in row], dtype=np.int64) for place, row in enumerate(answered)
        ]
        return {**inputs, "text_scores": text_scores, "item_queries": pad_right(item_queries, NO_ITEM)}

    def _pack(self, row: Row) -> dict[str, np.ndarray]:
        """One row: its examples one after another, and their targets one after another."""
        events = [event for example in row for event in example.events]
        num_positions = np.array([len(example.events) for example in row])
        starts = np.cumsum(num_positions) - num_positions
        targets = [(first, target) for first, example in zip(starts, row, strict=True) for target in example.targets]
        items = [(first, target) for first, example in zip(starts, row, strict=True) for target in example.item_targets]
        event_items = [
            np.full(len(example.events), NO_ITEM) if example.event_items is None else example.event_items
            for example in row
        ]
        lengths = np.array([len(target.response) for _, target in targets])
        labels = np.concatenate([target.response for _, target in targets])
        decoder_inputs = np.roll(labels, 1)
        decoder_inputs[np.cumsum(lengths) - lengths] = self.tokenizer.pad_token_id
        return {
            "input_ids": np.concatenate(events),
            "event_ids": np.repeat(np.arange(len(events)), [len(event) for event in events]),
            "encoder_starts": np.repeat(starts, num_positions),
            "event_items": np.concatenate(event_items),
            "item_positions": np.array([first + target.end - 1 for first, target in items], dtype=np.int64),
            "item_is_searched": np.array([t.behavior is Behavior.SEARCHED_ITEM for _, t in items], dtype=np.int64),
            "item_labels": np.array([target.item for _, target in items], dtype=np.int64),
            "decoder_input_ids": decoder_inputs,
            "decoder_target_ids": np.repeat(np.arange(len(targets)), lengths),
            "decoder_starts": np.repeat([first for first, _ in targets], lengths),
            "decoder_ends": np.repeat([first + target.end for first, target in targets], lengths),
            "labels": labels,
        }


def _distinct_queries(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The queries of some rows, and for each row the query at each position, "" for none."""
    queries = [[query for example in row for query in _queries_of(example)] for row in rows]
    return list(dict.fromkeys(query for row in queries for query in row if query)), queries


def _queries_of(example: Example) -> list[str]:
    """The query at each position of an example, "" for none."""
    return [*example.queries, *[""] * (len(example.events) - len(example.queries))]


def _answered_queries(example: Example) -> list[str]:
    """The query that each item target answers, "" for a recommendation, or where the history begins after the query."""
    latest: list[str] = list(accumulate(_queries_of(example), _later_query))
    return [
        latest[target.end - 1] if target.behavior is Behavior.SEARCHED_ITEM else "" for target in example.item_targets
    ]


def _later_query(before: str, query: str) -> str:
    return query or before
