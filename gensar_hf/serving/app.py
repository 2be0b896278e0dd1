"""The HTTP application: recommend, search, suggest and rank, the items, and changes of the catalogue."""

import asyncio
import base64
import hmac
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Generic, Literal, TypeVar

import pandas as pd
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gensar_hf.errors import InputError
from gensar_hf.new_items import read_new_items
from gensar_hf.pipeline import GenSARPipeline
from gensar_hf.serving.model_worker import Answered, Closing, ModelRequest, ModelWorker, Overloaded
from gensar_hf.serving.settings import ServingSettings

# ---- bodies of requests and answers


def _encodable(text: str) -> str:
    """Refuse text that no answer could quote, such as half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("The text is not valid Unicode") from None
    return text


Text = Annotated[StrictStr, AfterValidator(_encodable)]
ItemId = Annotated[Text | StrictInt, Field(description="An item id.", examples=["50"])]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Event(_Body):
    """A click (`item_id`), a query (`query`), or a click on a result of a query (both)."""

    model_config = ConfigDict(extra="allow")  # as in the pipeline, which knows which keys were meant

    item_id: ItemId | None = None
    query: Text | None = Field(default=None, examples=["space adventure"])


class _Question(_Body):
    history: list[Event] = Field(
        default=[],
        description="The user's events, oldest first.",
        examples=[[{"item_id": "50"}, {"query": "space adventure"}, {"item_id": "181", "query": "space adventure"}]],
    )
    on_unknown: Literal["raise", "skip"] = Field(
        default="raise", description="`skip` drops unknown items instead of refusing the request."
    )
    among: list[ItemId] | None = Field(default=None, description="Answer with these items only.", examples=[None])


class Recommend(_Question):
    """Recommend the likeliest next items."""

    top_k: StrictInt = Field(default=10, ge=1, description="Number of answers.", examples=[5])
    exclude_seen: StrictBool = Field(default=False, description="Leave out the items of the history.")
    explain: StrictBool = Field(default=False, description="Add the parts of each score.")
    exclude: list[ItemId] = Field(default=[], description="Do not answer with these items.", examples=[[]])


class Search(Recommend):
    """Find items for a query."""

    query: Text = Field(description="What the user typed.", examples=["star wars"])


class Suggest(_Question):
    """Suggest next queries."""

    top_k: StrictInt = Field(default=3, ge=1, description="Number of queries.", examples=[3])


class Rank(_Question):
    """Rank items for a user, or for a user's query."""

    candidates: list[ItemId] = Field(description="The items to rank.", examples=[["1", "50", "181"]])
    query: Text | None = Field(default=None, description="Rank as results of this search.", examples=[None])


QuestionT = TypeVar("QuestionT")


class Batch(_Body, Generic[QuestionT]):
    """Several requests, answered with one catalogue."""

    requests: list[QuestionT] = Field(min_length=1)


def _form(body: Any) -> str:
    return "batch" if isinstance(body, Batch) or (isinstance(body, dict) and "requests" in body) else "single"


# One request or a batch, told apart by the name `requests`, so that an error is about the form that was meant.
RecommendBody = Annotated[
    Annotated[Recommend, Tag("single")] | Annotated[Batch[Recommend], Tag("batch")], Discriminator(_form)
]
SearchBody = Annotated[Annotated[Search, Tag("single")] | Annotated[Batch[Search], Tag("batch")], Discriminator(_form)]
SuggestBody = Annotated[
    Annotated[Suggest, Tag("single")] | Annotated[Batch[Suggest], Tag("batch")], Discriminator(_form)
]
RankBody = Annotated[Annotated[Rank, Tag("single")] | Annotated[Batch[Rank], Tag("batch")], Discriminator(_form)]


class ItemAnswer(BaseModel):
    """An item, and the natural logarithm of its weighted probability."""

    item_id: str
    title: str | None
    score: float
    parts: dict[str, float] | None = Field(default=None, description="Sum up to the score; with `explain`.")


class QueryAnswer(BaseModel):
    """A query, and the mean logarithm of its tokens' probabilities."""

    query: str
    score: float


class _Answers(BaseModel):
    catalogue_version: int = Field(description="Counts the changes of the catalogue since the start.")
    took_ms: float = Field(description="Milliseconds, waiting included.")


class ItemAnswers(_Answers):
    """The best first: `answers` to one request, or for a body with `requests` one list each in `batch`."""

    answers: list[ItemAnswer] | None = None
    batch: list[list[ItemAnswer]] | None = None


class QueryAnswers(_Answers):
    """As `ItemAnswers`."""

    answers: list[QueryAnswer] | None = None
    batch: list[list[QueryAnswer]] | None = None


class Item(BaseModel):
    """An item of the catalogue with its two identifiers."""

    item_id: str
    title: str | None
    text: str | None
    available: bool
    semantic_identifier: list[str]
    collaborative_identifier: list[str]


class CatalogueChange(_Body):
    """Items to bring back, to add and to take out, in this order and all at once."""

    add: list[dict[Text, Text | StrictInt | float | None]] = Field(
        default=[],
        description="New items: `item_id` and the text columns of the training.",
        examples=[[{"item_id": "new-1", "title": "Gravity", "year": "2013", "genres": "Sci-Fi, Thriller"}]],
    )
    remove: list[ItemId] = Field(default=[], description="Items that must not be found any more.", examples=[[]])
    restore: list[ItemId] = Field(default=[], description="Removed items to bring back.", examples=[[]])


class CatalogueState(BaseModel):
    """The catalogue after a change."""

    num_available: int
    catalogue_version: int


class Problem(BaseModel):
    """What is wrong, and what to do."""

    detail: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        401: "The token is missing or wrong.",
        413: "The body is too large.",
        422: "The request cannot be answered; one sentence says why.",
        429: "Too many requests are waiting.",
        503: "The server is starting or shutting down.",
        504: "The answer took too long.",
    }.items()
}


# ---- the application


class Metrics:
    """What `/metrics` shows, in a registry of its own, so that several applications fit into a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("gensar_http_requests", "Answered requests.", ["endpoint", "status"], **made)
        self.seconds = Histogram("gensar_http_request_seconds", "Time to answer.", ["endpoint"], **made)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        self.batch_size = Histogram("gensar_batch_size", "Requests per batch.", ["kind"], buckets=sizes, **made)
        self.model_seconds = Histogram("gensar_model_seconds", "Time of the model per batch.", ["kind"], **made)
        self.waiting = Gauge("gensar_waiting_requests", "Requests in the queue.", **made)
        self.items = Gauge("gensar_available_items", "Items that can be found.", **made)
        self.version = Gauge("gensar_catalogue_version", "Changes of the catalogue, plus one.", **made)

    def on_batch(self, kind: str, size: int, seconds: float) -> None:
        """Count a batch of the model."""
        self.batch_size.labels(kind).observe(size)
        self.model_seconds.labels(kind).observe(seconds)


class Server:
    """A model behind an HTTP interface: the worker's thread, limits and errors. `create_app` makes the routes."""

    def __init__(self, pipe: GenSARPipeline, settings: ServingSettings) -> None:
        self.pipe, self.settings, self.metrics = pipe, settings, Metrics()
        self.is_ready = False
        self.streams: set[Any] = set()  # tasks that keep a connection to an open page
        self._worker: ModelWorker | None = None

    @asynccontextmanager
    async def running(self, app: FastAPI | None = None) -> AsyncIterator[None]:
        """Start the worker and let the model answer once; at the end answer what is under way."""
        settings = self.settings
        self._worker = ModelWorker(
            self.pipe, settings.max_batch_size, settings.max_wait_ms, settings.max_queue, self.metrics.on_batch
        )
        first = self.pipe.tokenizer.identifiers.item_ids[0]  # the two build the trie and the text index
        for request in (ModelRequest("recommend", []), ModelRequest("search", [{"item_id": first}], "a")):
            await asyncio.wrap_future(self._worker.submit([request]))
        self.is_ready = True
        try:
            yield
        finally:
            self.is_ready = False
            await asyncio.to_thread(self._worker.close)

    @property
    def worker(self) -> ModelWorker:
        """The worker.

        Raises:
            HTTPException: 503, the server does not run.
        """
        if self._worker is None or not self._worker.is_open:
            raise HTTPException(503, "The server is starting or shutting down; try again.", {"Retry-After": "1"})
        return self._worker

    async def answers(self, requests: list[ModelRequest]) -> Answered:
        """Answers to requests of one kind.

        Raises:
            InputError: a request that cannot be answered.
            HTTPException: 429, 503 or 504.
        """
        try:
            return await self._result(self.worker.submit(requests))
        except Overloaded:
            seconds = str(max(1, round(self.settings.timeout_s / 10)))
            raise HTTPException(
                429,
                f"{self.settings.max_queue} requests are waiting already; try again in {seconds} s.",
                {"Retry-After": seconds},
            ) from None
        except Closing:
            raise HTTPException(503, "The server is shutting down.", {"Retry-After": "1"}) from None

    async def _result(self, future: Future) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout_s)
        except TimeoutError:
            raise HTTPException(504, f"No answer within {self.settings.timeout_s:g} s; try again later.") from None

    async def change_catalogue(self, change: CatalogueChange) -> CatalogueState:
        """Apply a change; one that fails leaves the catalogue as it is."""
        worker = self.worker
        try:
            version = await self._result(worker.change_catalogue(partial(_changed_catalogue, change)))
        except Closing:
            raise HTTPException(503, "The server is shutting down.", {"Retry-After": "1"}) from None
        num_available = self.pipe.tokenizer.identifiers.num_available
        return CatalogueState(num_available=num_available, catalogue_version=version)

    def item(self, item_id: str) -> Item | None:
        """An item of the catalogue; None: there is none of this id."""
        table = self.pipe.tokenizer.identifiers
        row = table.rows().get(item_id)
        if row is None:
            return None
        return Item(
            item_id=item_id,
            title=None if table.titles is None else table.titles[row],
            text=None if table.texts is None else table.texts[row],
            available=bool(table.available[row]),
            semantic_identifier=table.semantic_tokens(row),
            collaborative_identifier=table.collaborative_tokens(row),
        )

    def model_requests(self, kind: str, body: Any) -> list[ModelRequest]:
        """The requests in a body.

        Raises:
            InputError: a list is longer, or a number larger, than the server takes.
        """
        questions = body.requests if isinstance(body, Batch) else [body]
        settings = self.settings
        self._limit(len(questions), settings.max_requests, "requests", "requests in one body")
        requests = []
        for place, question in enumerate(questions):
            where = f"requests[{place}]." if isinstance(body, Batch) else ""
            options: dict[str, Any] = {"on_unknown": question.on_unknown}
            lists: dict[str, Any] = {"among": None, "exclude": (), "candidates": ()}
            for name in lists:
                if getattr(question, name, None) is not None:
                    lists[name] = tuple(map(str, getattr(question, name)))
                    self._limit(len(lists[name]), settings.max_items, where + name, "items in a list")
            self._limit(len(question.history), settings.max_history, f"{where}history", "events in a history")
            top_k = getattr(question, "top_k", len(lists["candidates"]))
            if kind != "rank" and top_k > settings.max_top_k:
                raise InputError(f"{where}top_k: this server gives at most {settings.max_top_k} answers; got {top_k}.")
            if isinstance(question, Recommend):
                options |= {"exclude_seen": question.exclude_seen, "explain": question.explain}
            requests.append(
                ModelRequest(
                    kind,
                    [event.model_dump(exclude_none=True) for event in question.history],
                    getattr(question, "query", None),
                    top_k=top_k,
                    options=tuple(options.items()),
                    **lists,
                )
            )
        return requests

    @staticmethod
    def _limit(number: int, most: int, name: str, what: str) -> None:
        if number > most:
            raise InputError(f"{name}: this server takes at most {most:,} {what}; got {number:,}.")

    def render_metrics(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        self.metrics.waiting.set(self.worker.num_waiting)
        self.metrics.items.set(self.pipe.tokenizer.identifiers.num_available)
        self.metrics.version.set(self.worker.catalogue_version)
        return generate_latest(self.metrics.registry)


def _changed_catalogue(change: CatalogueChange, pipe: GenSARPipeline) -> None:
    """Make the catalogue with all changes, then swap it in."""
    table = pipe.tokenizer.identifiers
    if change.restore:
        table = table.restore_items([str(item_id) for item_id in change.restore])
    if change.add:
        encoder = pipe.load_item_encoder()
        new = read_new_items(pd.DataFrame(change.add), table, encoder.text_columns)
        table = encoder.extend(table, new)
    if change.remove:
        table = table.remove_items([str(item_id) for item_id in change.remove])
    pipe.set_catalogue(table)


def create_app(pipe: GenSARPipeline, settings: ServingSettings | None = None) -> FastAPI:
    """The application that serves a model.

    Args:
        pipe: the model; from the start of the application on, only its thread calls it.
        settings: default: those of `gensar serve`.
    """
    settings = settings or ServingSettings()
    server = Server(pipe, settings)
    app = FastAPI(
        title="GenSAR",
        summary="One model that recommends, searches, suggests queries and ranks.",
        lifespan=server.running,
        responses=_PROBLEMS,
    )
    app.state.server = server

    async def answer(kind: str, body: Any) -> dict[str, Any]:
        start = time.perf_counter()
        answers, version = await server.answers(server.model_requests(kind, body))
        found = {"batch": answers} if isinstance(body, Batch) else {"answers": answers[0]}
        took = 1000 * (time.perf_counter() - start)
        return {"catalogue_version": version, "took_ms": round(took, 2), **found}

    @app.post("/v1/recommend", tags=["model"], response_model=ItemAnswers, response_model_exclude_unset=True)
    async def recommend(body: RecommendBody) -> Any:
        """Recommend the likeliest next items."""
        return await answer("recommend", body)

    @app.post("/v1/search", tags=["model"], response_model=ItemAnswers, response_model_exclude_unset=True)
    async def search(body: SearchBody) -> Any:
        """Find items for a query."""
        return await answer("search", body)

    @app.post("/v1/suggest", tags=["model"], response_model=QueryAnswers, response_model_exclude_unset=True)
    async def suggest(body: SuggestBody) -> Any:
        """Suggest next queries."""
        return await answer("suggest", body)

    @app.post("/v1/rank", tags=["model"], response_model=ItemAnswers, response_model_exclude_unset=True)
    async def rank(body: RankBody) -> Any:
        """Rank items for a user, or for a user's query."""
        return await answer("rank", body)

    @app.get("/v1/items/{item_id:path}", tags=["catalogue"], responses={404: {"model": Problem}})
    async def item(item_id: str) -> Item:
        """An item with its title, text and identifiers."""
        found = server.item(item_id)
        if found is None:
            raise HTTPException(404, f"There is no item '{item_id[:100]}' in the catalogue.")
        return found

    def may_change(request: Request) -> None:
        if settings.token is None:
            raise HTTPException(403, "The catalogue cannot be changed, because the server was started without --token.")
        if not _has_token(request.headers.get("authorization", ""), settings.token):
            raise HTTPException(401, "Changes of the catalogue need the header 'Authorization: Bearer TOKEN'.", _ASK)

    @app.put(
        "/v1/catalogue", tags=["catalogue"], responses={403: {"model": Problem}}, dependencies=[Depends(may_change)]
    )
    async def catalogue(change: CatalogueChange) -> CatalogueState:
        """Restore, add and remove items, in this order and all at once. The change lasts until the server ends."""
        return await server.change_catalogue(change)

    @app.get("/healthz", tags=["state"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["state"])
    async def readyz() -> dict[str, str]:
        """Whether the model answers; 503 before and after."""
        if not server.is_ready:
            raise HTTPException(503, "The server is starting or shutting down.", {"Retry-After": "1"})
        server.worker  # noqa: B018 - raises 503 if its thread has ended
        return {"status": "ready"}

    @app.get("/metrics", tags=["state"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Metrics in the format of Prometheus."""
        return PlainTextResponse(server.render_metrics(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(InputError)
    async def refuse(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": " ".join(str(error).split())[:500]}, 422)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        detail = _explained(error)
        if "json" not in request.headers.get("content-type", "") and request.method != "GET":
            detail = "The body must be JSON, with the header 'Content-Type: application/json'."
        return JSONResponse({"detail": detail}, 422)

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "The server failed to answer; its log says why."}, 500)

    app.add_middleware(_Gate, server=server)
    return app


def _explained(error: RequestValidationError) -> str:
    """The first complaint about a body, as a sentence."""
    first, *others = error.errors()
    place = [part for part in first["loc"] if part not in ("body", "single", "batch", "path")]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    more = f" ({len(others)} more problems)" if others else ""
    return f"{name[:200] or 'The body'}: {first['msg'][:200].rstrip('.')}{more}; /docs shows the fields."


# ---- before the application

_ASK = {"WWW-Authenticate": 'Basic realm="gensar"'}  # a browser then asks for the token as a password
_OPEN_PATHS = ("/healthz", "/readyz")
_ENDPOINTS = ("/v1/recommend", "/v1/search", "/v1/suggest", "/v1/rank", "/v1/items", "/v1/catalogue")
# Ways of Gradio to store, read or fetch files, which the page does not need.
_CLOSED = re.compile(r"/(gradio_api/)?(upload|file|proxy|stream)(_progress)?[=/]?")


class _Gate:
    """ASGI middleware: the token of a private server, the size of bodies, and the count of answers."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.settings, self.metrics, self.streams = app, server.settings, server.metrics, server.streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, start, status = scope["path"], time.perf_counter(), 500
        most, read = 1024 * self.settings.max_body_kb, 0

        async def count_received() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, self._too_large())
            return message

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(path, Headers(scope=scope), most)
        is_stream, task = path.startswith("/gradio_api/heartbeat"), asyncio.current_task()
        if is_stream:
            self.streams.add(task)
        try:
            await (refusal or self.app)(scope, count_received, note_status)
        except asyncio.CancelledError:
            if not is_stream:
                raise
            await send({"type": "http.response.body"})  # the server ends
        finally:
            self.streams.discard(task)
            endpoint = next((name for name in _ENDPOINTS if path.startswith(name)), "other")
            self.metrics.requests.labels(endpoint, str(status)).inc()
            self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)

    def _refusal(self, path: str, headers: Headers, most: int) -> JSONResponse | None:
        settings = self.settings
        has_token = _has_token(headers.get("authorization", ""), settings.token or "")
        if settings.private and path not in _OPEN_PATHS and not has_token:
            return JSONResponse({"detail": "This server needs the header 'Authorization: Bearer TOKEN'."}, 401, _ASK)
        if _CLOSED.match(path):
            return JSONResponse({"detail": "This server takes and gives no files."}, 404)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > most:
            return JSONResponse({"detail": self._too_large()}, 413)
        return None

    def _too_large(self) -> str:
        return f"A body may have at most {self.settings.max_body_kb:,} KiB; send fewer requests at once."


def _has_token(header: str, token: str) -> bool:
    """Whether an `Authorization` header has the token, as a bearer token or as the password of a browser."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value.encode(), validate=True).decode("latin-1").partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.strip().encode(), token.encode())
