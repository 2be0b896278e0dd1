"""Send malformed and hostile requests to a served model; fail if one is answered with a status of 500 or more.

    python tests/fuzz/fuzz_requests.py --requests 2000 --seed 0
    python tests/fuzz/fuzz_requests.py --model runs/ml-100k/model

Half of the bodies are valid ones with a value replaced, a field missing or repeated, or bytes changed. The others are
of fixed classes. `--schemathesis` adds its requests, made from the server's own description.
"""

import argparse
import copy
import http.client
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, 10**30, -(10**18), "", " ", "\x00", "a", "é" * 40, "🦔" * 500, "\u202e<script>",
    "' OR 1=1 --", "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/", "${jndi:ldap://x}", "{{7*7}}", "%s%n",
    [], [[]], [None], [[[[]]]], {}, {"a": {}}, {"item_id": None}, [{}], ["B01"] * 3, "NaN", "x" * 5000,
]  # fmt: skip
PATHS = [
    "/v1/items/..%2f..%2f..%2fetc%2fpasswd", "/v1/items/%00", "/v1/items/%ff%fe", "/v1/items//etc/passwd",
    "/v1/items/file:%2f%2f%2fetc%2fpasswd", "/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/v1/../metrics",
    "/gradio_api/proxy=http://127.0.0.1:1/", "/v1/items/" + "a" * 8000, "/v1/%2e%2e/", "/v1/items/%F0%9F%A6%94",
]  # fmt: skip


def valid_bodies(items: list[str]) -> dict[str, dict[str, Any]]:
    """A good body for each path."""
    history = [{"item_id": items[0]}, {"query": "red"}, {"item_id": items[1], "query": "red"}]
    question = {"history": history, "on_unknown": "raise"}
    ask = {**question, "top_k": 3, "exclude_seen": True, "explain": True, "among": items[:9], "exclude": items[:1]}
    return {
        "/v1/recommend": ask,
        "/v1/search": {**ask, "query": "blue soap"},
        "/v1/suggest": {**question, "top_k": 2},
        "/v1/rank": {**question, "candidates": items[:5], "query": "red"},
        "/v1/catalogue": {"add": [{"item_id": "x", "title": "y"}], "remove": [items[2]], "restore": []},
    }


def changed(body: Any, draw: random.Random) -> Any:
    """A copy with one to three places changed."""
    body = copy.deepcopy(body)
    for _ in range(draw.randint(1, 3)):
        places = [(body, key) for key in (body if isinstance(body, dict) else range(len(body)))]
        parent, key = draw.choice(places) if places else (None, None)
        while parent is not None and isinstance(parent[key], dict | list) and parent[key] and draw.random() < 0.6:
            inner = parent[key]
            parent, key = inner, draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if parent is None:
            return copy.deepcopy(draw.choice(VALUES))
        action = draw.random()
        if action < 0.7:
            parent[key] = copy.deepcopy(draw.choice(VALUES))
        elif action < 0.85:
            del parent[key]
        elif isinstance(parent, dict):
            parent[str(draw.choice(VALUES))[:50]] = copy.deepcopy(draw.choice(VALUES))
        else:
            parent.extend(parent * draw.randint(1, 300))
    return body


def request(draw: random.Random, bodies: dict[str, dict], number: int) -> tuple[str, str, str, bytes, dict[str, str]]:
    """Class, method, path, body and headers of a request."""
    path = draw.choice(list(bodies))
    method = "PUT" if path == "/v1/catalogue" else "POST"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer a-secret-of-some-length"}
    valid = (
        bodies[path] if draw.random() < 0.7 or method == "PUT" else {"requests": [bodies[path]] * draw.randint(0, 4)}
    )
    text = json.dumps(valid).encode()
    kinds = ("value", "value", "value", "value", "bytes", "depth", "size", "encoding", "path", "header", "other")
    kind = draw.choice(kinds)
    if kind == "value":
        return kind, method, path, json.dumps(changed(valid, draw)).encode(), headers
    if kind == "bytes":
        damaged = bytearray(text)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        return kind, method, path, bytes(damaged), headers
    if kind == "depth":
        opening = draw.choice([b"[", b'{"history":', b'{"requests":[', b'[{"a":'])
        return kind, method, path, opening * draw.choice([50, 2000, 60_000]), headers
    if kind == "size":
        query = b'{"query": "' + b"a" * draw.choice([2000, 900_000, 10_000_000]) + b'"}'
        return kind, method, path, query if number % 20 == 0 else query[:3000] + b'"}', headers
    if kind == "encoding":
        codec = draw.choice(["utf-16", "utf-32", "utf-8-sig", "cp500"])
        return (
            kind,
            method,
            path,
            draw.choice([text.decode().encode(codec), text + b"\xff", b'{"query": "\\udc80"}']),
            headers,
        )
    if kind == "path":
        return kind, draw.choice(["GET", "POST", "PUT", "DELETE", "HEAD"]), draw.choice(PATHS), b"", headers
    if kind == "header":
        name = draw.choice(["Content-Type", "Authorization", "Content-Encoding", "Host", "X-Forwarded-For", "Origin"])
        values = ["", "text/plain", "application/json; charset=utf-7", "Basic !!!", "gzip", "a" * 5000, "Bearer é"]
        return kind, method, path, text, {**headers, name: draw.choice(values)}
    return kind, draw.choice(["GET", "DELETE", "PATCH", "OPTIONS", "TRACE"]), path, text, headers


def send(address: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """Status and text of the answer; 0: the server closed the connection while the body was sent."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
    try:
        connection.putrequest(method, path.replace(" ", "%20"), skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders()
        connection.send(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except (BrokenPipeError, ConnectionResetError):
        return 0, ""
    finally:
        connection.close()


def main() -> int:
    """Print how many requests of each class had which status; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="model folder; default: a tiny one is trained")
    parser.add_argument("--schemathesis", action="store_true", help="run it as well")
    options = parser.parse_args()

    from live_server import live_server

    from gensar_hf import GenSARPipeline

    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            pipe = GenSARPipeline.from_pretrained(options.model)
        else:
            import tiny_runs

            from gensar_hf.training.stages import train

            pipe = train(tiny_runs.make_dataset(), tiny_runs.arguments(folder))
        draw, counts, failures = random.Random(options.seed), defaultdict[str, Counter](Counter), list[str]()
        bodies = valid_bodies(list(pipe.items["item_id"][:30]))
        with live_server(pipe, token="a-secret-of-some-length", page=False) as address:
            for number in range(options.requests):
                kind, method, path, body, headers = request(draw, bodies, number)
                status, text = send(address, method, path, body, headers)
                counts[kind][status] += 1
                if status >= 500 or "Traceback" in text or (status == 0 and len(body) < 2**20):
                    failures.append(f"{kind}: {method} {path} {body[:300]!r} {headers} → {status} {text[:300]}")
            for path, body in bodies.items():  # the server still answers
                if path != "/v1/catalogue":
                    status, text = send(
                        address, "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
                    )
                    counts["valid"][status] += 1
            if options.schemathesis:
                tool = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or "schemathesis"
                checks = ["--checks", "not_a_server_error", "--max-examples", "60", "--seed", str(options.seed)]
                done = subprocess.run([tool, "run", f"{address}/openapi.json", *checks], check=False)
                failures += ["schemathesis"] * (done.returncode != 0)
    for kind, own in sorted(counts.items()):
        print(
            f"{kind:<10} {sum(own.values()):>5}   " + ", ".join(f"{status}: {n}" for status, n in sorted(own.items()))
        )
    for failure in failures[:20]:
        print(failure)
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
