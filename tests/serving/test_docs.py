"""docs/serving.md: its commands run and its requests are answered. Slow: it starts servers."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
from tiny_runs import SETTINGS

from gensar_hf import GenSARTrainingArguments, InteractionDataset, train

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_run(tmp_path: Path) -> None:
    """Those of Docker and Ray excepted, which `Dockerfile` and `test_ray.py` stand for."""
    films = [ROOT / "notebooks" / name for name in ("items.csv", "clicks.csv")]
    clicks = pd.read_csv(films[1], dtype=str)
    pipe = train(
        InteractionDataset(films[0], clicks[:600]), GenSARTrainingArguments(str(tmp_path / "films"), **SETTINGS)
    )
    users = {"user_id": ["1", "2"], "history": [["alien"], []], "query": ["space", "ghost"]}
    for name in ("histories", "queries"):
        pd.DataFrame(users).to_parquet(tmp_path / f"{name}.parquet")
    blocks = re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r" \\\n\s*", " ", block).splitlines()]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    gensar = f"{sys.executable} -m gensar_hf"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server: subprocess.Popen | None = None
    asked = written = 0
    try:
        for line in lines:
            command = re.sub(r"^gensar|\bgensar(?= serve )", gensar, line).replace("8000", port)
            if line.startswith(("docker", "serve")) or "--engine ray" in line:
                continue
            if line.startswith(("gensar recommend", "gensar search")):
                subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment)
                written += 1
            elif " serve " in command:
                if server is not None:
                    server.terminate()
                    server.wait(timeout=60)
                command = f"exec env {command} --port {port} --page false"
                server = subprocess.Popen(command, shell=True, cwd=tmp_path, env=environment)
                wait_for(f"http://127.0.0.1:{port}/readyz", server)
            elif line.startswith("curl"):
                done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
                answer = json.loads(done.stdout)
                assert "detail" not in answer, (line, answer)
                asked += 1
    finally:
        if server is not None:
            server.terminate()
            server.wait(timeout=60)
    assert (asked, written) == (6, 2)
    names = {"pipe": pipe, "ids": ["alien", "carrie"], "history": [{"item_id": "alien"}], "candidates": ["carrie"]}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        exec(block, names)


def wait_for(address: str, server: subprocess.Popen) -> None:
    while True:
        try:
            urllib.request.urlopen(address, timeout=10)
            return
        except OSError:
            assert server.poll() is None
            time.sleep(0.5)
