"""One thread owns the model. It gathers requests of a kind into batches, which take less time than the requests alone.

Changes of the catalogue run on the same thread, between two batches, so that all requests of a job see one catalogue.
"""

import logging
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gensar_hf.errors import InputError
from gensar_hf.pipeline import Answer, GenSARPipeline

KINDS = ("recommend", "search", "suggest", "rank")
_CACHED_FILTERS = 64

logger = logging.getLogger(__name__)


class Overloaded(Exception):
    """The queue is full."""


class Closing(Exception):
    """The server is shutting down."""


class ModelRequest(NamedTuple):
    """A request of one user.

    Attributes:
        kind: one of `KINDS`.
        history: events, as for `GenSARPipeline.recommend`.
        query: what a search looks for, or what `rank` ranks for.
        candidates: item ids, for `rank`.
        top_k: number of answers.
        among: ids of the items that may be answers; None: all.
        exclude: ids of items that must not be answers.
        options: further arguments of the pipeline's method, as pairs.
    """

    kind: str
    history: list[dict[str, Any]]
    query: str | None = None
    candidates: Sequence[str] = ()
    top_k: int = 10
    among: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    options: tuple[tuple[str, Hashable], ...] = ()


class Answered(NamedTuple):
    """The answers to requests, one list each, and the version of the catalogue that they are of."""

    answers: list[list[Answer]]
    catalogue_version: int


@dataclass(eq=False)
class _Job:
    kind: str
    work: Sequence[ModelRequest] | Callable[[], Any]
    size: int
    future: Future = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class ModelWorker:
    """Answers the requests of many threads with one model.

    Args:
        pipe: the pipeline; from now on only the worker's thread calls it.
        max_batch_size: requests per batch.
        max_wait_ms: how long the first request of a batch waits for others.
        max_queue: requests that may wait; further ones are refused.
        on_batch: called with the kind, the number of requests and the seconds of each batch.
    """

    def __init__(
        self,
        pipe: GenSARPipeline,
        max_batch_size: int = 32,
        max_wait_ms: float = 3.0,
        max_queue: int = 256,
        on_batch: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.pipe = pipe
        self.max_batch_size, self.max_wait, self.max_queue = max_batch_size, max_wait_ms / 1000, max_queue
        self.catalogue_version = 1
        self._on_batch = on_batch or (lambda kind, size, seconds: None)
        self._filters: OrderedDict[Hashable, Any] = OrderedDict()
        self._jobs: deque[_Job] = deque()
        self._condition = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        with self._condition:
            return sum(job.size for job in self._jobs)

    @property
    def is_open(self) -> bool:
        """Whether further requests are taken."""
        return self._thread.is_alive() and not self._is_closing

    def submit(self, requests: Sequence[ModelRequest]) -> "Future[Answered]":
        """Queue requests of one kind.

        Raises:
            Overloaded: the queue is full.
            Closing: the worker is being closed.
        """
        return self._enqueue(_Job(requests[0].kind, requests, len(requests)))

    def change_catalogue(self, change: Callable[[GenSARPipeline], Any]) -> "Future[int]":
        """Queue a change, which must leave the catalogue as it is if it fails. It runs between two batches.

        The result is the version of the new catalogue.
        """

        def work() -> int:
            change(self.pipe)
            self.catalogue_version += 1
            self._filters.clear()
            return self.catalogue_version

        return self._enqueue(_Job("catalogue", work, 0))

    def close(self) -> None:
        """Answer what is in the queue, then end the thread."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        self._thread.join()

    def _enqueue(self, job: _Job) -> Future:
        with self._condition:
            if self._is_closing:
                raise Closing
            self._jobs = deque(each for each in self._jobs if not each.future.cancelled())
            # A job that is larger than the queue is taken when nothing waits.
            if self._jobs and job.size + sum(each.size for each in self._jobs) > self.max_queue:
                raise Overloaded
            self._jobs.append(job)
            self._condition.notify_all()
        return job.future

    # ---- on the worker's thread

    def _run(self) -> None:
        while True:
            jobs = [job for job in self._next_jobs() if job.future.set_running_or_notify_cancel()]
            if not jobs and self._is_closing and not self._jobs:
                return
            try:
                self._do(jobs)
            except Exception as error:
                logger.exception("A batch failed.")
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)

    def _next_jobs(self) -> list[_Job]:
        """The oldest job and others of its kind, together at most a batch; empty: the worker is closed."""
        with self._condition:
            while not self._jobs and not self._is_closing:
                self._condition.wait()
            if not self._jobs:
                return []
            first = self._jobs[0]
            while not self._is_closing and not callable(first.work):
                left = first.arrived + self.max_wait - time.monotonic()
                if left <= 0 or sum(job.size for job in self._jobs if job.kind == first.kind) >= self.max_batch_size:
                    break
                self._condition.wait(left)
            chosen, size = [first], first.size
            for job in list(self._jobs)[1:]:
                if not callable(first.work) and job.kind == first.kind and size + job.size <= self.max_batch_size:
                    chosen.append(job)
                    size += job.size
            for job in chosen:
                self._jobs.remove(job)
            return chosen

    def _do(self, jobs: Sequence[_Job]) -> None:
        if jobs and callable(jobs[0].work):
            try:
                jobs[0].future.set_result(jobs[0].work())
            except Exception as error:
                jobs[0].future.set_exception(error)
            return
        requests = [request for job in jobs for request in job.work]  # type: ignore[union-attr]
        groups: dict[Hashable, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._batch_key(request), []).append(place)
        results: list[Any] = [None] * len(requests)
        for places in groups.values():
            start = time.perf_counter()
            for place, result in zip(places, self._results([requests[place] for place in places]), strict=True):
                results[place] = result
            self._on_batch(requests[places[0]].kind, len(places), time.perf_counter() - start)
        end = 0
        for job in jobs:
            own, end = results[end : end + job.size], end + job.size
            failed = [place for place, result in enumerate(own) if isinstance(result, Exception)]
            if not failed:
                job.future.set_result(Answered(own, self.catalogue_version))
            elif job.size == 1 or not isinstance(own[failed[0]], InputError):
                job.future.set_exception(own[failed[0]])
            else:
                job.future.set_exception(InputError(f"requests[{failed[0]}]: {own[failed[0]]}"))

    def _batch_key(self, request: ModelRequest) -> Hashable:
        """Requests with the same key are answered by one call of the pipeline."""
        top_k = request.top_k
        if request.kind == "rank" or (request.kind != "suggest" and top_k <= self.pipe.num_beams):
            top_k = 0  # the answers of a larger `top_k` begin with those of a smaller one
        return top_k, request.query is None, request.among is None, request.options

    def _results(self, requests: list[ModelRequest]) -> list[Any]:
        """Answers, or an exception, for each request of a group; a bad request is found by halving the batch."""
        try:
            answers = self._answers(requests)
            return [own[: request.top_k] for own, request in zip(answers, requests, strict=True)]
        except Exception as error:
            if len(requests) == 1:
                return [_as_input_error(error)]
            middle = len(requests) // 2
            return self._results(requests[:middle]) + self._results(requests[middle:])

    def _answers(self, requests: list[ModelRequest]) -> Any:
        first, histories = requests[0], [request.history for request in requests]
        options: dict[str, Any] = dict(first.options)
        if first.among is not None:
            options["among"] = [self._filter(request.among or (), options) for request in requests]
        if any(request.exclude for request in requests):
            options["exclude"] = [self._filter(request.exclude, options) for request in requests]
        top_k = max(request.top_k for request in requests)
        queries: Any = [request.query for request in requests]
        if first.kind == "recommend":
            return self.pipe.recommend(histories, top_k=top_k, **options)
        if first.kind == "search":
            return self.pipe.search(queries, histories, top_k=top_k, **options)
        if first.kind == "suggest":
            return self.pipe.suggest_queries(histories, top_k=top_k, **options)
        candidates = [request.candidates for request in requests]
        return self.pipe.rank(histories, candidates, None if first.query is None else queries, **options)

    def _filter(self, ids: tuple[str, ...], options: dict[str, Any]) -> Any:
        """The prepared filter of a list of items; the latest ones are kept."""
        on_unknown = options.get("on_unknown", "raise")
        key = (ids, on_unknown)
        if key not in self._filters:
            self._filters[key] = self.pipe.filter(ids, on_unknown)
        self._filters.move_to_end(key)
        while len(self._filters) > _CACHED_FILTERS:
            self._filters.popitem(last=False)
        return self._filters[key]


def _as_input_error(error: Exception) -> Exception:
    """An `InputError`, if this package complains about a value; every other error is a defect and stays as it is."""
    if isinstance(error, InputError) or not isinstance(error, ValueError):
        return error
    module = str([frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1].f_globals.get("__name__"))
    return InputError(str(error)) if module.startswith("gensar_hf.") else error
