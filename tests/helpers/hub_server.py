"""A stand-in for the Hugging Face hub: models in memory, behind the part of its HTTP protocol that is used here."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_owner"


class Hub:
    """Models of a hub.

    Attributes:
      models: USER/NAME -> {"private": bool, "commits": [file -> content, after each commit]}.
      url: address of the server.
      asked: (method, path) of each request.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict] = {}
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def commit(
        self, name: str, files: dict[str, bytes], *, deleted: Collection[str] = (), private: bool = False
    ) -> str:
        """Add a commit of more and of fewer files to a model, created if it does not exist; return its id."""
        model = self.models.setdefault(name, {"private": private, "commits": [{}]})
        kept = {file: content for file, content in model["commits"][-1].items() if file not in deleted}
        model["commits"].append(kept | files)
        return sha(len(model["commits"]) - 1)

    @contextlib.contextmanager
    def serving(self) -> Iterator["Hub"]:
        """Answer on a free port of this host within this block."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def sha(number: int) -> str:
    """Return the id of a model's commit."""
    return hashlib.sha1(b"%d" % number).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def _answer(self, status: int, content: bytes | dict | list = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _model(self, name: str) -> dict | None:
        model = self.hub.models.get(name)
        if model is None or (model["private"] and not self._signed_in()):
            self._refuse(404 if self._signed_in() else 401, "RepoNotFound")
            return None
        return model

    def _number(self, model: dict, revision: str) -> int | None:
        numbers = {"main": len(model["commits"]) - 1} | {sha(n): n for n in range(len(model["commits"]))}
        if revision not in numbers:
            self._refuse(404, "RevisionNotFound")
            return None
        return numbers[revision]

    def do_GET(self) -> None:
        """Answer about a model, its files, or with a file."""
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            if (model := self._model(match[1])) is None or (n := self._number(model, match[3] or "main")) is None:
                return
            files = model["commits"][n]
            if match[2] == "tree":
                entries = [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in files.items()
                ]
                self._answer(200, entries)
                return
            siblings = [{"rfilename": file} for file in files]
            about = {"id": match[1], "modelId": match[1], "private": model["private"], "sha": sha(n)}
            self._answer(200, about | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (model := self._model(match[1])) is None or (n := self._number(model, match[2])) is None:
                return
            content = model["commits"][n].get(match[3])
            if content is None:
                self._refuse(404, "EntryNotFound")
                return
            self._answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=sha(n))
        else:
            self._refuse(404, "NotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Create a model, or add a commit to one."""
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._signed_in():
            self._refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if name.startswith("others/"):
                self._refuse(403, "Forbidden")
            elif name in self.hub.models:
                self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
            else:
                private = asked.get("private", asked.get("visibility") == "private")  # clients 1 and 2
                self.hub.models[name] = {"private": private, "commits": [{}]}
                self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [file | {"uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer(200, {"files": [{k: f[k] for k in ("path", "uploadMode", "shouldIgnore")} for f in files]})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            new = {value["path"]: base64.b64decode(value["content"]) for value in values}
            deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
            oid = self.hub.commit(match[1], new, deleted=deleted)
            self._answer(200, {"commitUrl": f"{self.hub.url}/{match[1]}/commit/{oid}", "commitOid": oid})
        else:
            self._refuse(404, "NotFound")
