"""A server on this machine that answers the Hugging Face hub's clients from a folder: as much of its API as they need.

The folder holds `models/OWNER/NAME/...` and `datasets/OWNER/NAME/...`, the files of each repository's one revision.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

# Names from before there were owners.
CANONICAL = {"bert-base-uncased": "google-bert/bert-base-uncased"}
INFO = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>.+?)(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>.+?)/tree/(?P<revision>[^/]+)(/(?P<path>.*))?")
PATHS = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>.+?)/paths-info/(?P<revision>[^/]+)")
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@contextlib.contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """For the time of a block, the server's address and the list of the requests that it got."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    requests: list[str]

    def log_message(self, *arguments) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        answers = {TREE: self._tree, PATHS: self._paths, INFO: self._info, FILE: self._file}
        matches = [(match, answer) for pattern, answer in answers.items() if (match := pattern.fullmatch(path))]
        if not matches:
            return self._missing("EntryNotFound")
        match, answer = matches[0]
        words = match.groupdict()
        kind = "datasets" if (words["kind"] or "models").startswith("datasets") else "models"
        if kind == "models" and words["name"] in CANONICAL:
            location = self.path.replace(words["name"], CANONICAL[words["name"]], 1)
            return self._send(307, headers={"Location": location})
        repository = self.root / kind / words["name"]
        if not repository.is_dir():
            return self._missing("RepoNotFound")
        if words["revision"] not in (None, "main", _commit(repository)):
            return self._missing("RevisionNotFound")
        return answer(repository, words, body)

    def _info(self, repository: Path, words: dict, body: bytes) -> None:
        content = {
            "id": words["name"],
            "sha": _commit(repository),
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in _files(repository)],
        }
        self._send_json(content)

    def _tree(self, repository: Path, words: dict, body: bytes) -> None:
        folder = repository / (words["path"] or "")
        if not folder.is_dir():
            return self._missing("EntryNotFound")
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
        return self._send_json([_entry(repository, path) for path in paths])

    def _paths(self, repository: Path, words: dict, body: bytes) -> None:
        is_json = "json" in self.headers.get("Content-Type", "")
        names = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
        self._send_json([_entry(repository, repository / name) for name in names if (repository / name).exists()])

    def _file(self, repository: Path, words: dict, body: bytes) -> None:
        path = repository / words["path"]
        if not path.is_file():
            return self._missing("EntryNotFound")
        content, headers = path.read_bytes(), {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": _commit(repository)}
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"], "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._send(206, content[start : end + 1], headers)
        return self._send(200, content, headers)

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{code}: {self.path}"})

    def _send_json(self, content: dict | list) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _files(repository: Path) -> list[str]:
    return sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _commit(repository: Path) -> str:
    content = "".join(name + _digest(repository / name) for name in _files(repository))
    return hashlib.sha1(content.encode()).hexdigest()


def _entry(repository: Path, path: Path) -> dict:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    return {"type": "file", "oid": _digest(path)[:40], "size": path.stat().st_size, "path": name}
