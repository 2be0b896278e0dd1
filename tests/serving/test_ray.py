"""Bulk answers on Ray Data and the application on Ray Serve, with several workers and killed in the middle. Slow."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from pipeline_requests import answers_in

import gensar_hf.serving
from gensar_hf import GenSARPipeline, cli

CONFIG = Path(gensar_hf.serving.__file__).parent / "ray_serve.yaml"


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "gensar_hf.serving.ray_bulk", raising=False)
    (tmp_path / "h.jsonl").write_text('{"user_id": "1", "history": []}')
    words = ["recommend", str(tmp_path / "model"), str(tmp_path / "h.jsonl"), str(tmp_path / "answers")]
    assert cli.main([*words, "--engine=ray"]) == 2
    assert capsys.readouterr().err.count("pip install 'gensar-hf[ray]'") == 1


def write_histories(path: Path, number: int) -> list[list[dict]]:
    rng = np.random.default_rng(0)
    histories = [[{"item_id": f"film-{row}"} for row in rng.integers(12, size=5)] for _ in range(number)]
    rows = [{"user_id": f"u{user}", "history": history} for user, history in enumerate(histories)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return histories


@pytest.mark.slow
def test_bulk_answers_of_killed_workers(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    """A worker is killed, then the whole command; given again, it writes what one process writes."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    write_histories(tmp_path / "histories.jsonl", 1200)

    def command(folder: str, *words: str) -> list[str]:
        first = [sys.executable, "-m", "gensar_hf", "recommend", model_dirs["events"], tmp_path / "histories.jsonl"]
        return [*map(str, first), str(tmp_path / folder), "--part_size=50", "--top_k=3", *words]

    ray = command("ray", "--engine=ray", "--num_workers=2")
    with (tmp_path / "log").open("w") as log, subprocess.Popen(ray, stdout=log, stderr=log) as process:

        def wait(number: int) -> None:
            while len(list((tmp_path / "ray").glob("part-*"))) < number:
                assert process.poll() is None, (tmp_path / "log").read_text()[-5000:]
                time.sleep(0.05)

        wait(1)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [each for each in children if is_worker(each, "MapBatches")]
        assert len(workers) == 2
        workers[0].kill()
        wait(6)
        process.send_signal(signal.SIGKILL)
    assert 6 <= len(list((tmp_path / "ray").glob("part-*"))) < 24
    for words in (ray, command("local")):
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-5000:]
        assert "1,200 requests are answered" in result.stdout
    pd.testing.assert_frame_equal(answers_in(tmp_path / "ray"), answers_in(tmp_path / "local"), atol=1e-5)
    assert {path.name for path in (tmp_path / "ray").iterdir()} == {
        path.name for path in (tmp_path / "local").iterdir()
    }


def is_worker(process: psutil.Process, name: str) -> bool:
    try:
        return any(word.startswith("ray::") and name in word for word in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_replicas_answer_as_the_pipeline_and_one_may_be_killed(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    """The configuration that is shipped, with this model and two replicas."""
    pytest.importorskip("ray.serve", reason="needs the extra [ray]")
    config = yaml.safe_load(CONFIG.read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = config["http_options"]["port"] = free.getsockname()[1]
    application = config["applications"][0]
    application["args"]["model"] = str(model_dirs["events"])
    application["deployments"][0]["ray_actor_options"]["num_cpus"] = 0.5
    application["deployments"][0]["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    histories = write_histories(tmp_path / "histories.jsonl", 200)
    expected = GenSARPipeline.from_pretrained(model_dirs["events"], device="cpu").recommend(histories, top_k=3)
    address = f"http://127.0.0.1:{port}"

    def post(history: list[dict]) -> list[tuple[str, float]]:
        body = json.dumps({"history": history, "top_k": 3}).encode()
        headers = {"Content-Type": "application/json"}
        for _ in range(20):
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/recommend", body, headers)) as answer:
                    return [(item["item_id"], item["score"]) for item in json.load(answer)["answers"]]
            except OSError:  # the replica with this request was killed
                time.sleep(0.5)
        raise AssertionError("no answer")

    words = [sys.executable, "-m", "ray.serve.scripts", "run", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEFAULT_NUM_CPUS": "4"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(words, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            replicas: list[psutil.Process] = []
            while len(replicas) < 2 or not is_ready(f"{address}/readyz"):
                assert process.poll() is None, (tmp_path / "log").read_text()[-5000:]
                time.sleep(1)
                children = psutil.Process(process.pid).children(recursive=True)
                replicas = [each for each in children if is_worker(each, "ServeReplica:gensar:GenSAR")]
            with ThreadPoolExecutor(16) as pool:
                answers = [pool.submit(post, history) for history in histories]
                answers[20].result()
                replicas[0].kill()
                found = [answer.result() for answer in answers]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    for own, answers_of in zip(found, expected, strict=True):
        assert own == [(item["item_id"], pytest.approx(item["score"], abs=1e-4)) for item in answers_of]


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False
