"""A served model under load: the catalogue changes, the server ends, hostile requests come. Slow: real connections."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
from live_server import live_server

from gensar_hf import GenSARPipeline
from gensar_hf.cli import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOKEN = "a-secret-of-some-length"


def call(url: str, body: Any, method: str = "POST") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_catalogue_that_changes_100_times_under_load_gives_no_failed_and_no_mixed_answer(
    tiny_pipe: GenSARPipeline,
) -> None:
    """Odd versions have all items, even ones lack half of them. Every answer is wholly that of its version."""
    bodies = {"recommend": {"requests": [{"top_k": 30}, {"history": [{"item_id": "B03"}], "top_k": 30}]}}
    bodies["search"] = {"requests": [{"query": "red soap", "top_k": 30}, {"query": "oil", "top_k": 30}]}
    half = [f"B{item:02d}" for item in range(0, 30, 2)]
    expected: dict[tuple[str, int], list[set[str]]] = {}
    answers: list[tuple[str, int, Any]] = []
    stop = threading.Event()
    with live_server(tiny_pipe, token=TOKEN, page=False) as address:

        def ask(kind: str) -> None:
            while not stop.is_set():
                answers.append((kind, *call(f"{address}/v1/{kind}", bodies[kind])))

        def found(answer: dict) -> list[set[str]]:
            return [{item["item_id"] for item in own} for own in answer["batch"]]

        threads = [threading.Thread(target=ask, args=(kind,)) for kind in [*bodies] * 3]
        for kind, body in bodies.items():
            expected[kind, 1] = found(call(f"{address}/v1/{kind}", body)[1])
            expected[kind, 0] = [own - set(half) for own in expected[kind, 1]]
        for thread in threads:
            thread.start()
        for swap in range(100):
            status, state = call(f"{address}/v1/catalogue", {("remove", "restore")[swap % 2]: half}, "PUT")
            assert (status, state["catalogue_version"]) == (200, swap + 2)
        added = {"add": [{"item_id": "new", "title": "red soap oil"}]}
        assert call(f"{address}/v1/catalogue", added, "PUT")[0] == 200
        assert call(f"{address}/v1/catalogue", added, "PUT")[0] == 422
        stop.set()
        for thread in threads:
            thread.join()
        status, last = call(f"{address}/v1/search", {"query": "red soap oil", "top_k": 31})
        assert "new" in {answer["item_id"] for answer in last["answers"]}
    assert len(answers) > 20
    assert {status for _, status, _ in answers} == {200}
    versions = set()
    for kind, _, answer in answers:
        versions.add(answer["catalogue_version"] % 2)
        if answer["catalogue_version"] <= 101:
            assert found(answer) == expected[kind, answer["catalogue_version"] % 2]
    assert versions == {0, 1}


def test_a_server_that_is_told_to_end_answers_what_is_under_way(tiny_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gensar_hf", "serve", str(tiny_run), "--port", "0", "--page", "false"]
    command += ["--timeout_s", "300"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2].removesuffix("/v1,")
        body = {"requests": [{"top_k": 5, "history": [{"query": f"soap {place}"}]} for place in range(64)]}
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(call(f"{address}/v1/suggest", {**body})[0]))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        metrics = ""
        while "gensar_waiting_requests 128" not in metrics:  # one body is being answered, two wait
            metrics = urllib.request.urlopen(f"{address}/metrics", timeout=60).read().decode()
            if all(not thread.is_alive() for thread in threads):
                pytest.fail("All was answered before the end.")
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert answers == [200] * 3
        process.wait(timeout=60)


def test_hostile_requests_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/fuzz/fuzz_requests.py"), "--requests", "300", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 failures" in done.stdout


def test_a_space_is_written_and_its_app_starts(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("gradio", reason="needs the extra [serve]")
    folder = tmp_path / "space"
    assert main(["space", str(tiny_run), "--output_dir", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {"README.md", "app.py", "requirements.txt", "model"}
    assert main(["space", str(tiny_run), "--output_dir", str(folder)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["space", "me/films", "--output_dir", str(tmp_path / "hub")]) == 0
    card = (tmp_path / "hub/README.md").read_text()
    assert "models:\n  - me/films\npreload_from_hub:\n  - me/films\n" in card
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PORT": "0", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, str(folder / "app.py")], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
        assert call(f"{address}/v1/recommend", {})[0] == 200
        assert "GenSAR" in urllib.request.urlopen(f"{address}/", timeout=60).read().decode()
        with urllib.request.urlopen(f"{address}/gradio_api/heartbeat/a-page", timeout=60):  # an open page
            process.terminate()
            process.wait(timeout=25)  # less than --timeout_s, after which connections are cut
