"""A stand-in of the Hugging Face hub on this machine: making repositories, and commits of files."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


@dataclass
class Hub:
    """What was put there. With `refuses`, every request is answered with this status."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None
    refuses: int | None = None
    endpoint: str = ""

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
            return {"commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        return {"id": "me/student", "sha": "0" * 40, "siblings": []}


@contextmanager
def hub() -> Iterator[Hub]:
    here = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if here.refuses or self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(here.refuses or 401, {"error": "Invalid username or password."})
            else:
                self._send(200, here.answer(self.path.split("?")[0], content))

        do_GET = do_POST

        def _send(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
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
