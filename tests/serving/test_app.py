"""The REST API and the model's thread: answers, batches, limits, errors, changes of the catalogue."""

import base64
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_requests import HISTORIES, HISTORY, QUERIES, item_ids

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("prometheus_client", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("httpx", reason="needs httpx")

from fastapi.testclient import TestClient

from gensar_hf import GenSARPipeline
from gensar_hf.cli import main
from gensar_hf.errors import InputError
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.serving.app import create_app
from gensar_hf.serving.model_worker import Closing, ModelRequest, ModelWorker, Overloaded
from gensar_hf.serving.settings import ServingSettings

TOKEN = "a-secret-of-some-length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def own_pipe(pipelines: dict[str, GenSARPipeline], model_dirs: dict[str, Path]) -> GenSARPipeline:
    """A pipeline whose catalogue may be changed."""
    return GenSARPipeline(pipelines["texts"].model, GenSARTokenizer.from_pretrained(model_dirs["texts"]))


def client_of(pipe: GenSARPipeline, **settings: Any) -> TestClient:
    return TestClient(create_app(pipe, ServingSettings(**settings)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(pipelines: dict[str, GenSARPipeline]) -> Iterator[TestClient]:
    with client_of(pipelines["texts"], max_history=20, max_items=12, max_requests=4, max_body_kb=64) as client:
        yield client


CALLS: dict[str, tuple[dict[str, Any], Any]] = {
    "recommend": (
        {"top_k": 4, "exclude_seen": True, "explain": True},
        lambda pipe, history, query: pipe.recommend(history, top_k=4, exclude_seen=True, explain=True),
    ),
    "search": (
        {"query": "?", "top_k": 3, "among": ["film-1", "film-2", "film-5", "film-7"], "exclude": ["film-1"]},
        lambda pipe, history, query: pipe.search(
            query, history, top_k=3, among=["film-1", "film-2", "film-5", "film-7"], exclude=["film-1"]
        ),
    ),
    "suggest": ({"top_k": 2}, lambda pipe, history, query: pipe.suggest_queries(history, top_k=2)),
    "rank": (
        {"query": "?", "candidates": ["film-4", "film-2", "film-9"]},
        lambda pipe, history, query: pipe.rank(history, ["film-4", "film-2", "film-9"], query),
    ),
}


@pytest.mark.parametrize("kind", CALLS)
def test_answers_are_those_of_the_pipeline(client: TestClient, pipelines: dict[str, GenSARPipeline], kind: str) -> None:
    body, call = CALLS[kind]
    key = "query" if kind == "suggest" else "item_id"
    bodies = [
        {**body, "history": history, **({"query": query} if "query" in body else {})}
        for history, query in zip(HISTORIES, QUERIES, strict=True)
    ]
    expected = [call(pipelines["texts"], history, query) for history, query in zip(HISTORIES, QUERIES, strict=True)]
    batch = client.post(f"/v1/{kind}", json={"requests": bodies}).json()["batch"]
    single = client.post(f"/v1/{kind}", json=bodies[0]).json()
    assert single["catalogue_version"] == 1
    assert ("parts" in single["answers"][0]) == (kind == "recommend")
    for found, own in zip([*batch, single["answers"]], [*expected, expected[0]], strict=True):
        assert [answer[key] for answer in found] == [answer[key] for answer in own]
        assert [answer["score"] for answer in found] == pytest.approx([answer["score"] for answer in own], abs=1e-4)


# ---- the model's thread


def test_waiting_requests_are_answered_as_batches_and_a_bad_one_alone_fails(pipelines: dict) -> None:
    batches: list[tuple[str, int]] = []
    pipe = pipelines["texts"]
    worker = ModelWorker(pipe, max_batch_size=8, on_batch=lambda kind, size, _: batches.append((kind, size)))
    is_running = threading.Event()
    blocker = worker.change_catalogue(lambda _: is_running.wait(60))
    histories = [HISTORIES[place % 4] for place in range(11)] + [[{"item_id": "nothing"}]]
    asked = [
        worker.submit([ModelRequest("recommend", history, top_k=1 + place)]) for place, history in enumerate(histories)
    ]
    found = worker.submit([ModelRequest("search", HISTORY, query) for query in QUERIES])
    is_running.set()
    assert blocker.result(60) == 2
    for place, answers in enumerate(asked[:-1]):
        assert item_ids(answers.result(60).answers[0]) == item_ids(pipe.recommend(histories[place], top_k=1 + place))
    with pytest.raises(InputError, match=r"history\[0\]: item 'nothing' is not in the model's catalogue"):
        asked[-1].result(60)
    assert len(found.result(60).answers) == 4
    worker.close()
    assert batches == [("recommend", 8), ("recommend", 4), ("search", 4)]


def test_a_full_queue_refuses_and_a_closed_worker_answers_what_waits(pipelines: dict) -> None:
    worker = ModelWorker(pipelines["texts"], max_queue=2)
    is_running, has_started = threading.Event(), threading.Event()
    worker.change_catalogue(lambda _: (has_started.set(), is_running.wait(60)))
    assert has_started.wait(60)
    waiting = [worker.submit([ModelRequest("suggest", [])]) for _ in range(2)]
    with pytest.raises(Overloaded):
        worker.submit([ModelRequest("suggest", [])])
    closing = threading.Thread(target=worker.close)
    closing.start()
    while worker.is_open:
        pass
    with pytest.raises(Closing):
        worker.submit([ModelRequest("suggest", [])])
    is_running.set()
    closing.join(60)
    assert all(future.result(0).answers for future in waiting)


def test_an_overloaded_or_slow_server_says_so(pipelines: dict) -> None:
    with client_of(pipelines["texts"], timeout_s=1.0, max_queue=1) as client:
        is_running, has_started = threading.Event(), threading.Event()
        client.app.state.server.worker.change_catalogue(lambda _: (has_started.set(), is_running.wait(60)))
        assert has_started.wait(60)
        slow = client.post("/v1/suggest", json={})
        assert (slow.status_code, slow.json()["detail"]) == (504, "No answer within 1 s; try again later.")
        client.app.state.server.worker.submit([ModelRequest("suggest", [])])  # does not end before its time
        busy = client.post("/v1/suggest", json={})
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        assert "waiting already" in busy.json()["detail"]
        is_running.set()
    assert client.get("/readyz").status_code == 503
    assert client.post("/v1/suggest", json={}).status_code == 503


# ---- errors


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("recommend", {"history": [{"item_id": "nothing"}]}, "history[0]: item 'nothing' is not in the model"),
        ("recommend", {"history": [{}]}, "history[0] must be a mapping"),
        ("recommend", {"history": [{"item_id": True}]}, "history[0].item_id"),
        ("recommend", {"history": [{"item_id": "film-1"}] * 21}, "history: this server takes at most 20 events"),
        ("recommend", {"history": "film-1"}, "history: Input should be a valid list"),
        ("recommend", {"top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ("recommend", {"top_k": 101}, "top_k: this server gives at most 100 answers; got 101."),
        ("recommend", {"topk": 1}, "topk: Extra inputs are not permitted"),
        ("recommend", {"among": ["nothing"]}, "first 'nothing', are not in the catalogue"),
        ("recommend", {"requests": []}, "requests: List should have at least 1 item"),
        ("recommend", {"requests": [{}] * 5}, "requests: this server takes at most 4 requests in one body; got 5."),
        ("recommend", {"requests": [{}, {"history": [{"item_id": "no"}]}]}, "requests[1]: history[0]: item 'no'"),
        ("recommend", [], "The body: Input should be"),
        ("search", {}, "query: Field required"),
        ("search", {"query": "  "}, "A query must be text with at least one word"),
        ("search", {"query": 1}, "query: Input should be a valid string"),
        ("search", {"query": "a", "history": [{"query": "b" * 70_000}]}, "at most 64 KiB"),
        ("rank", {"candidates": ["film-1", "nothing"]}, "candidates[1]: item 'nothing'"),
        ("rank", {"candidates": ["film-1"] * 13}, "candidates: this server takes at most 12 items in a list; got 13."),
        ("suggest", {"on_unknown": "maybe"}, "on_unknown: Input should be 'raise' or 'skip'"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_with_one_sentence(client: TestClient, kind: str, body: Any, words: str) -> None:
    refused = client.post(f"/v1/{kind}", json=body)
    assert refused.status_code == (413 if "KiB" in words else 422)
    detail = refused.json()["detail"]
    assert words in detail
    assert len(detail) <= 500
    assert detail.endswith((".", "?"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'{"query": "\\ud800"}', b"[" * 50_000, b'{"top_k": ' + b"9" * 5000 + b"}", b"NaN"],
)
def test_bodies_that_are_not_requests_are_refused(client: TestClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused = client.post("/v1/search", content=content, headers=headers)
    assert refused.status_code in (400, 422)
    assert refused.json()["detail"]
    assert client.post("/v1/search", content=b'{"query": "a"}').status_code == 422
    too_large = client.post("/v1/search", content=iter([b" " * 30_000] * 5), headers=headers)  # of unknown length
    assert too_large.status_code == 413


def test_an_item_is_looked_up_by_its_id_and_no_path_is_opened(client: TestClient) -> None:
    item = client.get("/v1/items/film-3").json()
    assert (item["title"], item["available"]) == ("The Godfather", True)
    assert item["semantic_identifier"][:2] == item["collaborative_identifier"][:2]
    for item_id in ("nothing", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "http://127.0.0.1/"):
        missing = client.get(f"/v1/items/{item_id}")
        assert missing.status_code == 404
        assert "There is no item" in missing.json()["detail"]
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/gradio_api/proxy=http://127.0.0.1/"):
        assert client.get(path).json()["detail"] == "This server takes and gives no files."


# ---- catalogue, token, state


def test_a_change_of_the_catalogue_needs_the_token_and_is_made_wholly_or_not_at_all(own_pipe: GenSARPipeline) -> None:
    with client_of(own_pipe, token=TOKEN) as client:
        change = {"remove": ["film-3", "film-5"]}
        assert client.put("/v1/catalogue", json=change).status_code == 401
        wrong = client.put("/v1/catalogue", json=change, headers={"Authorization": "Bearer something-else-entirely"})
        assert wrong.status_code == 401
        everything = client.post("/v1/recommend", json={"top_k": 12}).json()["answers"]
        refused = client.put("/v1/catalogue", json={"remove": ["film-3", "nothing"]}, headers=BEARER)
        assert refused.status_code == 422
        assert "'nothing' cannot be removed" in refused.json()["detail"]
        assert client.post("/v1/recommend", json={"top_k": 12}).json()["answers"] == everything

        done = client.put("/v1/catalogue", json=change, headers=BEARER)
        assert done.json() == {"num_available": 10, "catalogue_version": 2}
        found = client.post("/v1/recommend", json={"top_k": 12}).json()
        assert found["catalogue_version"] == 2
        assert item_ids(found["answers"]) == [i for i in item_ids(everything) if i not in ("film-3", "film-5")]
        assert client.get("/v1/items/film-3").json()["available"] is False
        restored = client.put("/v1/catalogue", json={"restore": ["film-3"]}, headers=BEARER)
        assert restored.json()["num_available"] == 11
        metrics = client.get("/metrics").text
        assert "gensar_available_items 11.0" in metrics
        assert 'gensar_http_requests_total{endpoint="/v1/catalogue",status="401"} 2.0' in metrics
    with client_of(own_pipe) as client:
        closed = client.put("/v1/catalogue", json=change, headers=BEARER)
        assert closed.status_code == 403
        assert "started without --token" in closed.json()["detail"]


def test_a_private_server_answers_with_the_token_only(pipelines: dict[str, GenSARPipeline]) -> None:
    with client_of(pipelines["texts"], token=TOKEN, private=True) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "Basic %%%"},
            {"Authorization": "Digest x"},
        ):
            refused = client.post("/v1/suggest", json={}, headers=headers)
            assert refused.status_code == 401
            assert "Basic" in refused.headers["www-authenticate"]
        password = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
        for headers in (BEARER, {"Authorization": f"Basic {password}"}):
            assert client.post("/v1/suggest", json={}, headers=headers).status_code == 200


def test_the_description_has_examples_that_the_server_understands(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    assert {"/v1/recommend", "/v1/search", "/v1/suggest", "/v1/rank", "/v1/catalogue"} <= description["paths"].keys()
    for kind in ("Recommend", "Search", "Suggest", "Rank"):
        fields = description["components"]["schemas"][kind]["properties"]
        body = {name: field["examples"][0] for name, field in fields.items() if "examples" in field}
        refused = client.post(f"/v1/{kind.lower()}", json=body)
        assert "is not in the model's catalogue" in refused.json()["detail"]  # the items, and nothing else


# ---- the command


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--port", "70000"], "--port must be between 0 and 65535; got 70000."),
        (["--max_queue", "0"], "--max_queue must be at least 1; got 0."),
        (["--private", "true"], "--private needs a token"),
        (["--token", "short"], "The token must have at least 16 characters"),
        (["--page", "false"], "cannot be listened at (address already in use); choose another."),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GENSAR_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = [] if "--port" in words else ["--port", str(taken.getsockname()[1])]
        assert main(["serve", "no-model", "--page", "false", *words, *port]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error


def test_a_missing_extra_is_one_sentence(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("app", "server"):
        monkeypatch.delitem(sys.modules, f"gensar_hf.serving.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "no-model"]) == 2
    assert "install the extra with `pip install 'gensar-hf[serve]'`" in capsys.readouterr().err
