"""The training examples of the six tasks, drawn from a log.

An example is an encoder input (an instruction and events, each a few tokens) and one or more targets; a target sees
the instruction and a number of events, and is answered with a response. The draw of example `i` is a pure function of
`(seed, i)`: a run that was killed and resumed sees what an uninterrupted one sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gensar_hf.data import Behavior, UserEvents
from gensar_hf.errors import InputError
from gensar_hf.generator.item_vectors import NO_ITEM
from gensar_hf.generator.prompts import HISTORY_TASKS, PROMPTS, Task
from gensar_hf.generator.teacher import TeacherItems
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

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
    """A response `(num_tokens,)` to what an encoder saw up to, and without, position `end`."""

    end: int
    response: np.ndarray


@dataclass(frozen=True)
class ItemTarget:
    """The item that was clicked, and how, after what an encoder saw up to, and without, position `end`."""

    end: int
    item: int
    behavior: Behavior


@dataclass(frozen=True)
class Example:
    """What an encoder sees, and what it is asked.

    Attributes:
        task: that it is an example of.
        events: `events[0]` is the instruction; every event is `(num_tokens,)` token ids.
        targets: answered by the decoder.
        event_items: `(num_events,)` the item that each event is a click on, -1 for none; None: none is.
        item_targets: answered by the item vectors. They cost one product each, so whatever the task is, all clicks of
            the window are asked.
    """

    task: Task
    events: list[np.ndarray]
    targets: list[Target]
    event_items: np.ndarray | None = None
    item_targets: Sequence[ItemTarget] = ()

    @property
    def num_positions(self) -> int:
        """Encoder positions, with one position an event."""
        return len(self.events)

    @property
    def num_target_tokens(self) -> int:
        """Tokens of all responses together."""
        return sum(len(target.response) for target in self.targets)


@dataclass
class TrainingExamples:
    """The events that training may read, as tokens.

    Attributes:
        tokenizer: with the catalogue's identifiers; its items are the event log's, in the same order.
        events: the log; only `events.offsets[u]:train_ends[u]` of each user is read.
        train_ends: `(num_users,)`, see `Split`.
        item_texts: one a catalogue item.
        target_starts: `(num_users,)` event index; earlier events are read, and never asked for. None: all are.
        query_tokens: `<S_Q>` and the words of the queries that occur in training events, by query.
        item_text_tokens: the words of each item's text.
        is_target: `(num_events,)` bool, events that training may ask for.
        session_starts: `(num_events,)` the query event that a searched item answered; of other events themselves.
        described: `(num_described,)` items that have a text, and are trained on (see `IdentifierTable.neighbors`).
        searched: `(num_searched,)` training events that are search clicks, and may be asked for.
    """

    tokenizer: GenSARTokenizer
    events: UserEvents
    train_ends: np.ndarray
    item_texts: Sequence[str]
    target_starts: np.ndarray | None = None
    query_tokens: dict[int, np.ndarray] = field(init=False)
    item_text_tokens: list[np.ndarray] = field(init=False)
    is_target: np.ndarray = field(init=False)
    session_starts: np.ndarray = field(init=False)
    described: np.ndarray = field(init=False)
    searched: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        # Looked up once: the tokenizer takes longer to find a special token's id than `response` for all the rest.
        self._query_token = self.tokenizer.behavior_ids[Behavior.SEARCH_QUERY]
        self._end_token = self.tokenizer.eos_token_id
        events = self.events
        is_train = np.arange(events.num_events) < self.train_ends[events.event_users()]
        starts = events.offsets[:-1] if self.target_starts is None else self.target_starts
        is_asked = is_train & (np.arange(events.num_events) >= starts[events.event_users()])
        self.is_target = is_asked & ~_is_twin(events)
        self.session_starts = events.session_starts()
        used = np.unique(events.queries[is_train & (events.queries >= 0)])
        self.query_tokens = {
            int(query): np.insert(self.tokenizer.text_ids(events.query_texts[query]), 0, self._query_token)
            for query in used
        }
        self.item_text_tokens = [self.tokenizer.text_ids(text) for text in self.item_texts]
        num_marked = self.tokenizer.identifiers.num_trained + self.tokenizer.identifiers.num_marked
        self.described = np.flatnonzero([len(tokens) > 0 for tokens in self.item_text_tokens[:num_marked]])
        self.searched = np.flatnonzero(is_asked & (events.behaviors == Behavior.SEARCHED_ITEM))

    def event_tokens(self, window: np.ndarray | slice) -> list[np.ndarray]:
        """Ids of some events of the log, each `(num_tokens,)`, the behavior token first."""
        events, items = self.events, self.tokenizer.item_token_ids
        # Plain integers: this runs for every event of every example, and array scalars are slow.
        columns = (events.behaviors[window].tolist(), events.items[window].tolist(), events.queries[window].tolist())
        return [
            self.query_tokens[query] if behavior == Behavior.SEARCH_QUERY else items[behavior][item]
            for behavior, item, query in zip(*columns, strict=True)
        ]

    def num_clicks(self) -> np.ndarray:
        """`(num_items,)` how often training events click each item."""
        clicked = self.events.items[self.is_target & (self.events.items >= 0)]
        return np.bincount(clicked, minlength=self.events.num_items)

    def response(self, tokens: np.ndarray) -> np.ndarray:
        """What the model should answer when an event is the next one: its tokens, and an end token after words."""
        return np.append(tokens, self._end_token) if tokens[0] == self._query_token else tokens


class ExampleSampler:
    """Draws examples.

    Args:
        log: what may be read.
        task_weights: share of each task's draws; 0 or missing switches a task off.
        window: number of events of a history.
        max_target_tokens: of one example's responses together; targets beyond it are left out at random. 0 for the
            paper's way: one target an example, whatever its length.
        recent_share: share of the histories that end at the user's last target of the task; the others end at a random
            one. What is asked at serving time follows the last events.
        recommend_searched: recommend what was searched for, too: a search click is then a target of the next
            recommended item as well, with its collaborative identifier, and without its query in sight.
        teacher: what another recommender expects at each event; None: the log alone is the target.
        teacher_share: of the next recommended items, drawn from the teacher's in place of the log's.
        seed: of the draws.
        item_vectors: the examples are for a model with item vectors, which is asked for items, too.

    Raises:
        InputError: no task is left that the log has examples for.
    """

    def __init__(
        self,
        log: TrainingExamples,
        task_weights: Mapping[Task, float] | None = None,
        window: int = 50,
        max_target_tokens: int = 120,
        recent_share: float = 0.5,
        seed: int = 0,
        recommend_searched: bool = False,
        teacher: TeacherItems | None = None,
        teacher_share: float = 0.5,
        item_vectors: bool = False,
    ) -> None:
        self.item_vectors = item_vectors
        self.recent_share, self.recommend_searched = recent_share, recommend_searched
        self.teacher, self.teacher_share = teacher, teacher_share
        self.log, self.window, self.max_target_tokens, self.seed = log, window, max_target_tokens, seed
        self._instructions: dict[tuple[Task, int, str], np.ndarray] = {}
        weights = {task: weight for task, weight in (task_weights or DEFAULT_TASK_WEIGHTS).items() if weight > 0}
        self.users = {task: self._users_of(task) for task in weights if task in _BEHAVIOR_OF_TASK}
        self._wanted = {task: np.flatnonzero(self._is_wanted(task)) for task in self.users}
        possible = {
            task: weight
            for task, weight in weights.items()
            if (len(self.users[task]) if task in self.users else self._has_item_examples(task))
        }
        if not possible:
            raise InputError(
                f"None of the tasks {', '.join(weights)} has an example in the training events; check that users have "
                "at least two events before their held-out ones."
            )
        self.tasks = list(possible)
        self.probabilities = np.array(list(possible.values())) / sum(possible.values())
        self._cumulative = np.cumsum(self.probabilities) / self.probabilities.sum()

    def _is_wanted(self, task: Task) -> np.ndarray:
        """`(num_events,)` bool: training events that the task can ask for."""
        if task is Task.NEXT_RECOMMENDED_ITEM and self.recommend_searched:
            return self.log.is_target & (self.log.events.items >= 0)
        return self.log.is_target & (self.log.events.behaviors == _BEHAVIOR_OF_TASK[task])

    def _users_of(self, task: Task) -> np.ndarray:
        """Users with a training event that the task can ask for."""
        wanted = self._is_wanted(task)
        counts = np.add.reduceat(np.append(wanted, False).astype(np.int64), self.log.events.offsets[:-1])
        counts[np.diff(self.log.events.offsets) == 0] = 0
        return np.flatnonzero(counts > 0)

    def _has_item_examples(self, task: Task) -> bool:
        return len(self.log.searched if task is Task.AD_HOC_SEARCH else self.log.described) > 0

    def draw_task(self, rng: np.random.Generator) -> Task:
        """A task, by the weights."""
        # What `rng.choice(…, p=…)` does, without its checks, which take longer than the draw.
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
        log, users = self.log, self.users[task]
        user = users[rng.integers(len(users))]
        first, end = log.events.offsets[user], log.train_ends[user]
        candidates = self._wanted[task]
        candidates = candidates[slice(*candidates.searchsorted((first, end)))]
        # The window ends at or behind a target, so that no draw is empty; one that is asked alone ends it, or else the
        # last targets of the histories would be asked nearly always.
        is_recent = rng.random() < self.recent_share
        last = candidates[-1 if is_recent else rng.integers(len(candidates))]
        num_behind = 0 if self.max_target_tokens == 0 else rng.integers(max(1, self.window // 2))
        stop = int(min(end, last + 1 + num_behind))
        start = int(max(first, stop - self.window))
        asked = [last] if self.max_target_tokens == 0 else candidates[slice(*candidates.searchsorted((start, stop)))]
        tokens = log.event_tokens(slice(start, stop))
        item_targets = self._item_targets(start, stop, rng) if self.item_vectors else []
        if task is Task.NEXT_RECOMMENDED_ITEM:
            identifiers = log.tokenizer.item_token_ids[Behavior.RECOMMENDED_ITEM]
            recommended = [self._recommended(event, start, rng) for event in map(int, asked)]
            targets = [Target(target.end, identifiers[target.item]) for target in recommended]
        else:
            targets = [Target(event - start + 1, log.response(tokens[event - start])) for event in map(int, asked)]
        targets = self._within_budget(targets, rng)
        num_read = max([target.end for target in targets] + [target.end for target in item_targets]) - 1
        event_items = np.append(NO_ITEM, log.events.items[start : start + num_read])
        instruction = self._instruction(task, template)
        return Example(task, [instruction, *tokens[:num_read]], targets, event_items, item_targets)

    def _item_targets(self, start: int, stop: int, rng: np.random.Generator) -> list[ItemTarget]:
        """All clicks of a window as recommendations, and those after a query as search results."""
        is_click = self.log.is_target[start:stop] & (self.log.events.items[start:stop] >= 0)
        targets = []
        for event in (np.flatnonzero(is_click) + start).tolist():
            is_searched = self.log.events.behaviors[event] == Behavior.SEARCHED_ITEM
            if is_searched:
                item = int(self.log.events.items[event])
                targets.append(ItemTarget(event - start + 1, item, Behavior.SEARCHED_ITEM))
            if self.recommend_searched or not is_searched:
                targets.append(self._recommended(event, start, rng))
        return targets

    def _recommended(self, event: int, start: int, rng: np.random.Generator) -> ItemTarget:
        """A click as the next recommended item of a window that begins at event `start`."""
        # What a user typed would give the item away: its session is out of sight.
        end = max(int(self.log.session_starts[event]), start) - start + 1
        item = int(self.log.events.items[event])
        if self.teacher is not None and rng.random() < self.teacher_share:
            expected = self.teacher.draw(event, rng)
            item = item if expected is None else expected
        return ItemTarget(end, item, Behavior.RECOMMENDED_ITEM)

    def _within_budget(self, targets: list[Target], rng: np.random.Generator) -> list[Target]:
        """As many targets as `max_target_tokens` allows, at least one, drawn at random, in their order."""
        lengths = np.array([len(target.response) for target in targets])
        if len(targets) == 1 or lengths.sum() <= self.max_target_tokens:
            return targets
        order = rng.permutation(len(targets))
        num_kept = max(1, int((np.cumsum(lengths[order]) <= self.max_target_tokens).sum()))
        return [targets[index] for index in np.sort(order[:num_kept])]

    def _ad_hoc_example(self, template: int, rng: np.random.Generator) -> Example:
        """A training query alone, and an item clicked for it."""
        click = self.log.searched[rng.integers(len(self.log.searched))]
        query = self.log.query_tokens[int(self.log.events.queries[click])]
        (answer,) = self.log.event_tokens(np.array([click]))
        events = [self._instruction(Task.AD_HOC_SEARCH, template), query]
        item = ItemTarget(2, int(self.log.events.items[click]), Behavior.SEARCHED_ITEM)
        return Example(Task.AD_HOC_SEARCH, events, [Target(2, answer)], item_targets=[item] * self.item_vectors)

    def _description_example(self, task: Task, template: int, rng: np.random.Generator) -> Example:
        """An item's text and one of its identifiers, either way round."""
        item = int(self.log.described[rng.integers(len(self.log.described))])
        kind, behavior = (
            ("semantic", Behavior.SEARCHED_ITEM) if rng.random() < 0.5 else ("collaborative", Behavior.RECOMMENDED_ITEM)
        )
        identifier = self.log.tokenizer.item_token_ids[behavior][item][1:]
        text = self.log.item_text_tokens[item]
        instruction = self._instruction(task, template, kind)
        if task is Task.DESCRIPTION_TO_IDENTIFIER:
            described = ItemTarget(2, item, Behavior.SEARCHED_ITEM)  # a text asks for its item as a query does
            item_targets = [described] * self.item_vectors
            return Example(task, [instruction, text], [Target(2, identifier)], item_targets=item_targets)
        response = np.append(text, self.log.tokenizer.eos_token_id)
        return Example(task, [instruction, identifier], [Target(2, response)])

    def _instruction(self, task: Task, template: int, kind: str = "") -> np.ndarray:
        key = (task, template, kind)
        if key not in self._instructions:
            self._instructions[key] = self.log.tokenizer.text_ids(PROMPTS[task].instruction(template, kind))
        return self._instructions[key]


def _is_twin(events: UserEvents) -> np.ndarray:
    """`(num_events,)` bool: the user already has a click on the same item at the same moment.

    In the authors' Amazon data a review is a recommendation event and a search click at once; asking for the second
    one with the first in sight would only teach to copy.
    """
    users = events.event_users()
    order = np.lexsort((np.arange(len(users)), events.items, events.timestamps, users))
    same = np.zeros(len(users), dtype=bool)
    first, second = order[:-1], order[1:]
    same[second] = (
        (users[first] == users[second])
        & (events.timestamps[first] == events.timestamps[second])
        & (events.items[first] == events.items[second])
        & (events.items[second] >= 0)
    )
    return same
