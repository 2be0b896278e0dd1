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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from gensar_hf.data import Behavior, UserEvents
from gensar_hf.errors import InputError
from gensar_hf.generator.history import EventArrays
from gensar_hf.generator.item_vectors import NO_ITEM
from gensar_hf.generator.modeling_gensar import IGNORED_LABEL
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS, Task
from gensar_hf.generator.teacher import TeacherItems
from gensar_hf.generator.tokenization_gensar import NO_EVENT, GenSARTokenizer, pad_left, pad_right

DEFAULT_TASK_WEIGHTS: dict[Task, float] = {
    Task.NEXT_RECOMMENDED_ITEM: 0.45,
    Task.NEXT_QUERY: 0.06,
    Task.NEXT_SEARCHED_ITEM: 0.34,
    Task.DESCRIPTION_TO_IDENTIFIER: 0.03,
    Task.IDENTIFIER_TO_DESCRIPTION: 0.02,
    Task.AD_HOC_SEARCH: 0.10,
}
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
    """

    task: Task
    events: list[np.ndarray]
    targets: list[Target]
    event_items: np.ndarray | None = None
    item_targets: Sequence[ItemTarget] = ()

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

    Attributes:
        item_rows: `(events.num_items,)` row of each item in the identifier table.
        items: `(num_events,)` the same for each event, -1 for a query.
        event_items: `(num_events,)` row whose item vector represents the event, -1 for a query.
        query_tokens: tokens of the queries in training events, by query.
        item_text_tokens: words of each row's text (its title if the table has no texts).
        is_target: `(num_events,)` bool, events that may be targets.
        described: `(num_described,)` rows that have a text.
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
    ) -> None:
        self.tokenizer, self.events, self.train_ends = tokenizer, events, train_ends
        self._catalogue = tokenizer.catalogue
        table = self._catalogue.identifiers
        self.item_rows = self._catalogue.item_rows(events.item_ids)
        self.items = np.where(events.items < 0, NO_ITEM, self.item_rows[events.items])
        self.event_items = self._catalogue.trained_rows(self.items)

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
        item_texts = table.texts or table.titles or [""] * table.num_items
        self.item_text_tokens = [tokenizer.text_ids(text) for text in item_texts]
        self.described = np.flatnonzero([len(tokens) > 0 for tokens in self.item_text_tokens[:num_trained]])

    def event_tokens(self, window: np.ndarray | slice) -> list[np.ndarray]:
        """Token ids of some events, each `(num_tokens,)`, the behavior token first."""
        arrays = EventArrays.of_user_events(self.events, window, self.item_rows)
        return self.tokenizer.event_tokens(arrays, self.query_tokens, self._catalogue)

    def num_clicks(self) -> np.ndarray:
        """`(num_table_items,)` target clicks on each row of the identifier table."""
        clicked = self.items[self.is_target & (self.items >= 0)]
        return np.bincount(clicked, minlength=self._catalogue.identifiers.num_items)

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
        teacher: most probable next items of another recommender; None: all targets are clicks.
        teacher_share: share of the next recommended items that are drawn from the teacher.
        item_vectors: whether the model has item vectors (`config.num_items > 0`) and so needs item targets; ignored
            with `history_encoding="tokens"`.

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
        teacher: TeacherItems | None = None,
        teacher_share: float = 0.5,
        item_vectors: bool = True,
    ) -> None:
        tokenizer = examples.tokenizer
        self.examples, self.seed, self.recent_share = examples, seed, recent_share
        self.is_packed = tokenizer.history_encoding == "events"
        self.window = tokenizer.max_history_events if window is None else window
        self.max_target_tokens = max_target_tokens if self.is_packed else 0
        self.item_vectors = item_vectors and self.is_packed
        self.teacher, self.teacher_share = teacher, teacher_share
        self._instructions: dict[tuple[Task, int, str], np.ndarray] = {}
        weights = {task: weight for task, weight in (task_weights or DEFAULT_TASK_WEIGHTS).items() if weight > 0}
        # Events that are targets of each history task, and the users who have some.
        self._targets = {
            task: np.flatnonzero(examples.is_target & (examples.events.behaviors == _BEHAVIOR_OF_TASK[task]))
            for task in weights
            if task in _BEHAVIOR_OF_TASK
        }
        users = examples.events.event_users()
        self.users = {task: np.unique(users[targets]) for task, targets in self._targets.items()}
        sources = {
            Task.AD_HOC_SEARCH: examples.searched,
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
        tokens = examples.event_tokens(slice(start, stop))
        item_targets = self._item_targets(start, stop, rng) if self.item_vectors else []
        targets = []
        for event in chosen:
            response = examples.response(event, tokens[event - start])
            if task is Task.NEXT_RECOMMENDED_ITEM:
                response = examples.identifier(self._recommended_item(event, rng), Behavior.RECOMMENDED_ITEM)
            targets.append(Target(event - start + 1, response))
        targets = self._within_budget(targets, rng)
        num_read = max([target.end for target in targets] + [target.end for target in item_targets]) - 1
        event_items = np.append(NO_ITEM, examples.event_items[start : start + num_read])
        instruction = self._instruction(task, template)
        return Example(task, [instruction, *tokens[:num_read]], targets, event_items, item_targets)

    def _item_targets(self, start: int, stop: int, rng: np.random.Generator) -> list[ItemTarget]:
        """All clicks of a window."""
        examples, targets = self.examples, []
        is_click = examples.is_target[start:stop] & (examples.items[start:stop] >= 0)
        for event in (np.flatnonzero(is_click) + start).tolist():
            behavior = Behavior(int(examples.events.behaviors[event]))
            is_searched = behavior is Behavior.SEARCHED_ITEM
            item = int(examples.items[event]) if is_searched else self._recommended_item(event, rng)
            targets.append(ItemTarget(event - start + 1, item, behavior))
        return targets

    def _recommended_item(self, event: int, rng: np.random.Generator) -> int:
        """The item that a recommended click trains: its own, or one of the teacher's."""
        if self.teacher is not None and rng.random() < self.teacher_share:
            expected = self.teacher.draw(event, rng)
            if expected is not None:
                return int(self.examples.item_rows[expected])
        return int(self.examples.items[event])

    def _within_budget(self, targets: list[Target], rng: np.random.Generator) -> list[Target]:
        """As many targets as `max_target_tokens` allows, at least one, drawn at random, in their order."""
        lengths = np.array([len(target.response) for target in targets])
        if len(targets) == 1 or lengths.sum() <= self.max_target_tokens:
            return targets
        order = rng.permutation(len(targets))
        num_kept = max(1, int((np.cumsum(lengths[order]) <= self.max_target_tokens).sum()))
        return [targets[index] for index in np.sort(order[:num_kept])]

    def _ad_hoc_example(self, template: int, rng: np.random.Generator) -> Example:
        """A training query without a history, and an item clicked for it."""
        examples = self.examples
        click = int(examples.searched[rng.integers(len(examples.searched))])
        item = int(examples.items[click])
        query = examples.query_tokens[examples.events.query_texts[examples.events.queries[click]]]
        target = Target(2, examples.identifier(item, Behavior.SEARCHED_ITEM))
        item_targets = [ItemTarget(2, item, Behavior.SEARCHED_ITEM)] if self.item_vectors else []
        instruction = self._instruction(Task.AD_HOC_SEARCH, template)
        return Example(Task.AD_HOC_SEARCH, [instruction, query], [target], item_targets=item_targets)

    def _description_example(self, task: Task, template: int, rng: np.random.Generator) -> Example:
        """An item's text and one of its identifiers, in either direction."""
        examples = self.examples
        item = int(examples.described[rng.integers(len(examples.described))])
        kind, behavior = (
            ("semantic", Behavior.SEARCHED_ITEM) if rng.random() < 0.5 else ("collaborative", Behavior.RECOMMENDED_ITEM)
        )
        identifier, text = examples.identifier(item, behavior)[1:], examples.item_text_tokens[item]
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
        sampler: draws the examples. Its `max_target_tokens` bounds the responses of a row: a row of item texts would
            otherwise be three times as long as one of identifiers.
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
        while num_positions < self.max_positions:
            # All examples of a row are of one task, so that the task weights are shares of the rows.
            example = self.sampler.draw(task, rng)
            num_positions += example.num_positions
            num_tokens += example.num_target_tokens
            if num_positions > self.max_positions or num_tokens > self.sampler.max_target_tokens:
                break
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
        return {**encoding, **columns}

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
