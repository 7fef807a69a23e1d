"""A stand-in of the Hugging Face hub on this machine: making repositories, commits of files, and fetching them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"
COMMIT = "0" * 40


@dataclass
class Hub:
    """What was put there. With `refuses`, every request is answered with this status."""

    files: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    """of these files"""
    former: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """the files of former commits"""
    private: bool | None = None
    refuses: int | None = None
    endpoint: str = ""
    fetched: list[str] = field(default_factory=list)
    large: tuple[str, ...] = (".safetensors",)
    """of these the hub tells the SHA-256"""

    def push(self, **files: bytes) -> None:
        """Move the branch to another commit, with other content of files: `model_safetensors=…`."""
        self.former[self.commit] = dict(self.files)
        self.commit = f"{int(self.commit) + 1:040}"
        self.files |= {name.replace("_", ".", 1): content for name, content in files.items()}

    def at(self, path: str) -> tuple[str, dict[str, bytes]]:
        """Return the commit that a URL names, or else the branch's, and its files."""
        commit = next((commit for commit in self.former if commit in path), self.commit)
        return commit, self.former.get(commit, self.files)

    def answer(self, path: str, content: bytes) -> Any:
        if path == "/api/repos/create":
            told = json.loads(content)
            self.private = told.get("private", told.get("visibility") == "private")
            return {"url": f"{self.endpoint}/{told.get('organization', 'me')}/{told['name']}"}
        if "/preupload/" in path:
            paths = [file["path"] for file in json.loads(content)["files"]]
            return {"files": [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in paths]}
        if "/commit/" in path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.endpoint}/me/student/commit/0"
            return {"commitUrl": url, "commitOid": self.commit, "hookOutput": ""}
        commit, files = self.at(path)
        listed = [self._listed(name, content) for name, content in files.items()]
        if f"/tree/{commit}" in path:
            return listed
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        return {"id": "me/student", "sha": commit, "siblings": listed}

    def _listed(self, name: str, content: bytes) -> dict[str, Any]:
        """As in a tree, and as in what is told of a model."""
        sha256 = hashlib.sha256(content).hexdigest()
        large = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 134}
        listed = {"type": "file", "path": name, "rfilename": name, "size": len(content)}
        listed["oid"] = hashlib.sha1(content).hexdigest()
        return {**listed, **({"lfs": large} if name.endswith(self.large) else {})}


@contextmanager
def hub() -> Iterator[Hub]:
    here = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if here.refuses or self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(here.refuses or 401, {"error": "Invalid username or password."})
            elif "/resolve/" in self.path:
                self._send_file(*here.at(self.path), self.path.rsplit("/", 1)[1])
            else:
                self._send(200, here.answer(self.path.split("?")[0], content))

        do_GET = do_HEAD = do_POST

        def _send_file(self, commit: str, files: dict[str, bytes], name: str) -> None:
            content = files[name]
            if self.command == "GET":
                here.fetched.append(name)
            tags = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
            self._send_bytes(200, content, {"Content-Type": "application/octet-stream", **tags})

        def _send(self, status: int, content: Any) -> None:
            self._send_bytes(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send_bytes(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
