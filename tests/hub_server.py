"""A small hub on this machine: the few addresses of the Hugging Face hub that huggingface-hub asks for, and its faults.

It serves what ``add`` was given: a listing with sizes and digests, files by revision with the hub's headers, large ones
by a redirect to another address as the real hub does. It can be gated or private, drop connections and change bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_good"
LARGE = (".safetensors", ".gguf", ".bin")  # kept by Git LFS, with a sha256


@dataclass
class Commit:
    """One state of a repository: files by path."""

    sha: str
    files: Mapping[str, bytes]


@dataclass
class Repo:
    """A repository: commits by branch, tag and hash."""

    license: str | None = "apache-2.0"
    gated: bool = False
    private: bool = False
    revisions: dict[str, Commit] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What was asked: method, path, the byte that a range begins with, and whether a token came along."""

    method: str
    path: str
    start: int
    token: bool


class HubServer:
    """A hub in a thread; ``with HubServer() as hub``.

    Attributes:
        requests: everything that was asked, in order.
        cut: path of a file -> the bytes after which the connection is dropped, once.
        stuck: path of a file -> the byte beyond which nothing ever comes.
        broken: paths of files that come with a changed byte.
        digests: path of a large file -> what is said to be its sha256, if not the truth.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.cut: dict[str, int] = {}
        self.stuck: dict[str, int] = {}
        self.broken: set[str] = set()
        self.digests: dict[str, str] = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, files: Path | Mapping[str, bytes], *, revision: str = "main", **options: Any) -> str:
        """Put a folder, or files by path, under a revision of a repository; returns the commit."""
        if isinstance(files, Path):
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {str(path.relative_to(files)): path.read_bytes() for path in paths}
        repo = self.repos.setdefault(name, Repo(**options))
        card = f"---\nlicense: {repo.license}\n---\n# {name}\n" if repo.license else f"# {name}\n"
        files = {"README.md": card.encode(), **files}
        digest = hashlib.sha1(name.encode())
        for path, data in sorted(files.items()):
            digest.update(path.encode() + b"\0" + data)
        commit = Commit(digest.hexdigest(), files)
        repo.revisions[revision] = repo.revisions[commit.sha] = commit
        return commit.sha

    def fetched(self, *, large: bool = True) -> list[str]:
        """Paths of the files whose bytes were sent, in order; only the large ones unless told otherwise."""
        paths = [r.path.partition("/resolve/")[2].partition("/")[2] for r in self.requests if r.method == "GET"]
        return [path for path in paths if path and (path.endswith(LARGE) == large)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is not worth a traceback; anything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.server_hub.requests.append(Request(self.command, path, start, token))
        if path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"), token)
        elif path.startswith("/storage/"):
            name, _, rest = path.removeprefix("/storage/").partition("/at/")
            sha, _, file = rest.partition("/")
            self._send_bytes(file, self.server_hub.repos[name].revisions[sha].files[file], start)
        else:
            self._resolve(path.strip("/"), token, start)

    def _info(self, path: str, token: bool) -> None:
        name, _, revision = path.partition("/revision/")
        repo = self.server_hub.repos.get(name)
        if repo is None or (repo.private and not token):
            return self._refuse(404 if token else 401, "RepoNotFound")
        commit = repo.revisions.get(revision or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        siblings = []
        for file, data in commit.files.items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": _git_digest(data)}
            if file.endswith(LARGE):
                digest = self.server_hub.digests.get(file, _sha256(data))
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        body = {"id": name, "sha": commit.sha, "gated": "manual" if repo.gated else False, "siblings": siblings}
        if repo.license:
            body["cardData"] = {"license": repo.license}
        data = json.dumps(body).encode()
        return self._send(200, data, {"Content-Type": "application/json"})

    def _resolve(self, path: str, token: bool, start: int) -> None:
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo = self.server_hub.repos.get(name)
        if repo is None or (repo.private and not token):
            return self._refuse(404 if token else 401, "RepoNotFound")
        if repo.gated and not token:
            return self._refuse(401, "GatedRepo")
        commit = repo.revisions.get(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if file not in commit.files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit.sha})
        data = commit.files[file]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{_git_digest(data)}"'}
        if file.endswith(LARGE):
            # As on the real hub, another host keeps what is large, and must not be sent the token.
            port = urlsplit(self.server_hub.url).port
            headers |= {
                "X-Linked-Etag": f'"{_sha256(data)}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"http://localhost:{port}/storage/{name}/at/{commit.sha}/{file}",
            }
            return self._send(302, b"", headers)
        return self._send_bytes(file, data, start, headers)

    def _send_bytes(self, file: str, data: bytes, start: int, headers: Mapping[str, str] | None = None) -> None:
        if file in self.server_hub.broken:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, headers = 200, {"Accept-Ranges": "bytes", **(headers or {})}
        if start:
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        limit = self.server_hub.stuck.get(file)
        if limit is None and self.command == "GET":
            limit = self.server_hub.cut.pop(file, None)
        self._send(status, rest, headers, None if limit is None else max(0, limit - start))

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], limit: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:limit])
        if limit is not None:
            self.close_connection = True


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
