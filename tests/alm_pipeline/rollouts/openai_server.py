"""A loopback server with OpenAI's interface, which can be told to answer wrongly."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


class OpenAIServer:
    """`url` is its address; `requests` are the paths and bodies that it got, and `headers` their headers.

    `fault(path, body, number)` may return the status and the content of an answer other than the right one: bytes, or
    None for a connection that is cut; the number counts requests with this body from 0.
    """

    def __init__(self, fault: "Callable[[str, Json, int], tuple[int, bytes | None] | None] | None" = None) -> None:
        self.requests: list[tuple[str, Json]] = []
        self.headers: list[dict[str, str]] = []
        self.fault = fault or (lambda *_: None)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def serving(self) -> "Iterator[OpenAIServer]":
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                path = self.path.removeprefix("/v1")
                with server._lock:
                    number = server.requests.count((path, body))
                    server.requests.append((path, body))
                    server.headers.append(dict(self.headers))
                wrong = server.fault(path, body, number)
                status, content = wrong or (200, json.dumps(right_answer(path, body)).encode())
                if content is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                # the length of the whole answer, of which less may come
                length = len(content) + (10 if wrong and status == 200 and content.endswith(b"CUT") else 0)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        return Handler


def right_answer(path: str, body: Json) -> Json:
    """What is written depends on the prompt and the seed alone; every third text is cut."""
    is_cut = body["seed"] % 3 == 0
    reason = "length" if is_cut else "stop"
    text = f" written {body['seed'] % 97}."
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    if path == "/completions":
        return {"choices": [{"index": 0, "text": text, "finish_reason": reason}], "usage": usage}
    message = {"role": "assistant", "content": text.strip()}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}


def slowly(seconds: float) -> None:
    time.sleep(seconds)
