"""An HTTP proxy in front of the S3 server that injects faults: error responses, delays, cut connections."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import botocore.retries.standard
import pytest
import s3fs

from storage import urls
from tests.storage.s3_server import S3Server, environment

Fault = Callable[["_Handler"], None]


def answer(status: int, code: str) -> Fault:
    """Respond with a server error; the request does not reach the server."""

    def fault(handler: "_Handler") -> None:
        handler.read_body()
        body = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        handler.reply(status, [("Content-Type", "application/xml")], body)

    return fault


def slow(seconds: float) -> Fault:
    """Delay the response."""

    def fault(handler: "_Handler") -> None:
        body = handler.read_body()
        time.sleep(seconds)
        handler.reply(*handler.forward(body))

    return fault


def cut_request(handler: "_Handler", then: Callable[[], None] = lambda: None) -> None:
    """Forward half of the request to the server, call `then`, and break off both connections."""
    body = handler.rfile.read(handler.length // 2)
    with handler.upstream() as upstream:
        upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            if name.lower() != "expect":
                upstream.putheader(name, value)
        upstream.endheaders(body)
        then()
    handler.hang_up()


def cut_answer(handler: "_Handler") -> None:
    """Let the server handle the request, and break off the response halfway through its body, or before it if empty."""
    status, headers, body = handler.forward(handler.read_body())
    if body:
        handler.reply(status, headers, body, sent=len(body) // 2)
    handler.hang_up()


class Proxy:
    """Forwards everything, except that the next requests of a method get the injected fault."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.requests: list[str] = []
        """'METHOD path' of all requests received."""
        self._faults: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def harm(self, method: str, fault: Fault, times: int) -> None:
        self._faults += [(method, fault)] * times

    def heal(self) -> None:
        self._faults = []

    def count(self, method: str, name: str) -> int:
        """Return the requests so far for an object."""
        return sum(line.startswith(f"{method} ") and line.endswith(f"/{name}") for line in self.requests)

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append(f"{method} {path.split('?')[0]}")
            for index, (wanted, _) in enumerate(self._faults):
                if wanted == method:
                    return self._faults.pop(index)[1]
        return None

    @contextmanager
    def serving(self) -> Iterator["Proxy"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


@contextmanager
def proxy_of_stores(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, read_timeout: float, pause: float
) -> Iterator[Proxy]:
    """Serve a proxy that all stores on S3 use, with this timeout and this pause between tries, in seconds."""
    monkeypatch.setattr(urls, "_S3_CONFIG", {**urls._S3_CONFIG, "read_timeout": read_timeout})
    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: pause)
    s3fs.S3FileSystem.clear_instance_cache()  # instances keep the endpoint from the environment
    with Proxy(server.endpoint).serving() as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, http.client.HTTPException):  # the client gave up first, or the server is down
            self.close_connection = True

    def _serve(self) -> None:
        fault = self.server.proxy.next_fault(self.command, self.path)
        if fault:
            fault(self)
        else:
            self.reply(*self.forward(self.read_body()))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def read_body(self) -> bytes:
        return self.rfile.read(self.length)

    @contextmanager
    def upstream(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self.server.proxy.target, timeout=30)
        try:
            yield connection
        finally:
            connection.close()

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the server's response. All headers are forwarded unchanged: the signature covers the proxy's Host."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        with self.upstream() as upstream:
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None) -> None:
        """Send a response, or only the first `sent` bytes of its body, with the headers of the whole."""
        self.send_response_only(status)
        kept = [(name, value) for name, value in headers if name.lower() not in ("transfer-encoding", "connection")]
        if self.command != "HEAD":
            kept = [(name, value) for name, value in kept if name.lower() != "content-length"]
            kept.append(("Content-Length", str(len(body))))
        for name, value in kept:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
