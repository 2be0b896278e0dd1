"""A small stand-in for the Hub's HTTP API: repositories in memory, for `huggingface_hub` with HF_ENDPOINT set to it.

What a client sees is what it would see of the Hub as far as uploads in one commit (regular files and large ones),
branches, listings, downloads by branch or commit, and its errors for what is not there or not allowed are concerned.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_FILES = (".safetensors", ".parquet")  # what the Hub's .gitattributes sends to the large-file storage


@dataclass
class Repository:
    """Files by commit; branches by name."""

    is_private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, changes: dict[str, bytes | None]) -> str:
        """Apply changes (None deletes) on top of a branch; returns the commit's id."""
        files = dict(self.commits[self.branches[branch]]) if branch in self.branches else {}
        for path, content in changes.items():
            if content is None:
                files.pop(path, None)
            else:
                files[path] = content
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def sha_of(self, revision: str) -> str | None:
        """The commit that a branch or an id stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """Starts with `with Hub() as hub:`; `hub.url` is the endpoint.

    Attributes:
        repositories: kind and name → repository, such as `("models", "me/films")`.
        token: the one that may write, and read what is private.
        requests: method and path of everything that was asked for.
    """

    def __init__(self, token: str = "hf_secret") -> None:
        self.token = token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []

    def __enter__(self) -> "Hub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """A repository's files at a revision."""
        repository = self.repositories[kind, name]
        return repository.commits[repository.branches[revision]]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                answer(self, **match.groupdict())
                return
        self._error(404, "EntryNotFound")

    # ---- writing

    def create(self) -> None:
        wanted = self._body()
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        key = (f"{wanted.get('type') or 'model'}s", name)
        if not self._may_write():
            return
        is_new = key not in self.hub.repositories
        if is_new:
            repository = self.hub.repositories[key] = Repository(wanted.get("visibility") == "private")
            repository.commit("main", {".gitattributes": b""})
        prefix = "datasets/" if key[0] == "datasets" else ""
        self._json({"url": f"{self.hub.url}/{prefix}{name}", "id": name, "name": name}, 200 if is_new else 409)

    def validate(self) -> None:
        self._body()
        self._json({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        files = self._body()["files"]
        if self._repository(kind, name, revision) and self._may_write():
            mode = {True: "lfs", False: "regular"}
            described = [
                {"path": file["path"], "uploadMode": mode[file["path"].endswith(LARGE_FILES)], "shouldIgnore": False}
                for file in files
            ]
            self._json({"files": described})

    def batch(self, name: str) -> None:
        objects = self._body()["objects"]
        for each in objects:
            if each["oid"] not in self.hub.large_files:
                each["actions"] = {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        content = self._content()
        if hashlib.sha256(content).hexdigest() != oid:
            self._error(400, "BadRequest")
            return
        self.hub.large_files[oid] = content
        self._json({})

    def branch(self, kind: str, name: str, branch: str) -> None:
        self._content()
        repository = self._repository(kind, name, "main")
        if repository and self._may_write():
            repository.branches.setdefault(branch, repository.branches["main"])
            self._json({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        changes: dict[str, bytes | None] = {}
        for line in self._content().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = self.hub.large_files[value["oid"]]
            elif entry["key"] == "deletedFile":
                changes[value["path"]] = None
        repository = self._repository(kind, name, revision)
        if repository and self._may_write():
            sha = repository.commit(revision, changes)
            self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    # ---- reading

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repository = self._repository(kind, name, revision or "main")
        if repository:
            sha = repository.sha_of(revision or "main")
            files = [{"rfilename": path} for path in repository.commits[sha]]
            self._json({"id": name, "modelId": name, "sha": sha, "siblings": files, "tags": [], "private": False})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        repository = self._repository(kind, name, revision)
        if repository:
            files = repository.commits[repository.sha_of(revision)]
            inside = {path: content for path, content in files.items() if path.startswith(folder or "")}
            self._json(
                [{"type": "file", "path": p, "size": len(c), "oid": _etag(c)} for p, c in sorted(inside.items())]
            )

    def resolve(self, name: str, revision: str, path: str, kind: str = "models") -> None:
        repository = self._repository(kind.strip("/"), name, revision)
        if not repository:
            return
        sha = repository.sha_of(revision)
        content = repository.commits[sha].get(path)
        if content is None:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": sha})
        else:
            self._send(200, content, {"X-Repo-Commit": sha, "ETag": f'"{_etag(content)}"'})

    # ---- what they share

    def _repository(self, kind: str, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.is_private and not self._is_authorized()):
            self._error(404 if self._is_authorized() else 401, "RepoNotFound")
        elif repository.sha_of(revision) is None:
            self._error(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _is_authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _may_write(self) -> bool:
        if not self._is_authorized():
            self._json({"error": "Invalid username or password."}, 401)
        return self._is_authorized()

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _body(self) -> Any:
        return json.loads(self._content())

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_ROUTES = [
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate),
    (rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (rf"{_API}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?", _Handler.tree),
    (rf"{_API}(/revision/(?P<revision>[^/]+))?", _Handler.info),
    (r"/(datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/large/(?P<oid>[0-9a-f]+)", _Handler.upload),
    (r"/(?P<kind>datasets)/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.*)", _Handler.resolve),
    (r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.*)", _Handler.resolve),
]
