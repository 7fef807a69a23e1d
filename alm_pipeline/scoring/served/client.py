"""Asks servers over HTTP: many requests at a time, tried again while a server is away.

One thread runs the requests of all scorers of a process. A failure of the network, or a server that says that it can't
answer now, delays a row and loses nothing; the row may go to another server meanwhile.
"""

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from alm_pipeline.config import ServedConfig
from alm_pipeline.scoring.served.wire import error_text
from storage.errors import UserError

KEY = "ALM_SERVER_KEY"
"""the environment variable with the servers' API key"""
_UNAVAILABLE = frozenset({408, 429, 502, 503, 504})
"""HTTP statuses of a server, or of what is before it, that can't answer now"""
_FAULTS = 5
"""the number of times that an answer may be a server's error (500) or no JSON before the row is given up"""
_MISSING_API = {
    "/pooling": "it is not in pooling mode: set score.served.hidden_states to false, or start it with `alm serve "
    "--hidden-states`",
    "/v1/completions": "if it is in pooling mode, set score.served.hidden_states to true; else start it as "
    "docs/how-to/served-teachers.md says",
}
"""what to do if a server lacks an API"""
Got = TypeVar("Got")
_CONNECT_S = 10.0
_IDLE_S = 1.0
_REST_S = 1.0
"""after a failed connection, a server gets no further request for this long"""
_LONGEST_PAUSE_S = 10.0


class Answer(NamedTuple):
    """What a server answered."""

    url: str
    content: Any
    """the JSON"""


class ServerAway(UserError):
    """No server could be reached for as long as the configuration allows."""


class _Temporary(Exception):
    """The server may answer later."""

    def __init__(self, url: str, problem: str, is_fault: bool = False) -> None:
        """`is_fault`: the server is there, and answers wrongly."""
        super().__init__(f"{url}: {problem}")
        self.is_fault = is_fault


class _Patience:
    """How long one request is tried: `wait` seconds from its first failure, and `_FAULTS` answers that are faults.

    Not once no server will come back.
    """

    def __init__(self, wait_s: float, why_gone: Callable[[], str]) -> None:
        self.wait_s, self.why_gone, self.faults = wait_s, why_gone, 0
        self.first_failure: float | None = None

    def is_over(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        now = time.monotonic()
        self.first_failure = self.first_failure or now
        self.faults += isinstance(error, _Temporary) and error.is_fault
        return self.faults >= _FAULTS or now - self.first_failure >= self.wait_s or bool(self.why_gone())


class Client:
    """Sends requests to servers that all serve the same; to be used in a `with` statement."""

    def __init__(self, urls: Sequence[str], config: ServedConfig, why_gone: Callable[[], str] = lambda: "") -> None:
        """`why_gone` returns why no server will come back; "" while one may."""
        self.urls, self.config, self._why_gone = tuple(urls), config, why_gone
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests to servers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        key = os.environ.get(KEY)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(self.config.timeout, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=not all(map(_is_loopback, self.urls)),  # a proxy does not reach this machine's own ports
        )
        self._slots: asyncio.Queue[str] = asyncio.Queue()
        for _ in range(self.config.in_flight):
            for url in self.urls:
                self._slots.put_nowait(url)

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    def get(self, url: str, path: str) -> httpx.Response:
        """Return the response to a GET, whatever its status. Raises UserError if the server stays away."""
        future = asyncio.run_coroutine_threadsafe(self._patiently(self._get, url, path), self._loop)
        return future.result()

    def answers(
        self,
        path: str,
        count: int,
        body: Callable[[int], Mapping[str, Any]],
        while_waiting: Callable[[], None] = lambda: None,
        url: str | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the answer to each of `count` requests as it comes, with the request's number.

        `body` returns the JSON of a request by its number, once it is the request's turn. With `url`, only this server
        is asked, beside the requests that are in flight.
        `while_waiting` is called every second without an answer; what it raises ends the requests. Raises UserError if
        a server refuses a request, or no server answers it in time.
        """
        outcomes: SimpleQueue[tuple[int, Answer | BaseException]] = SimpleQueue()
        # answers that nobody has taken yet count too: those with hidden states would fill the memory
        room = asyncio.Semaphore(self.config.in_flight * len(self.urls))
        asking = asyncio.run_coroutine_threadsafe(self._ask_all(path, count, body, outcomes, url, room), self._loop)
        try:
            for _ in range(count):
                number, outcome = _next(outcomes, while_waiting)
                if isinstance(outcome, BaseException):
                    raise outcome
                yield number, outcome
                self._loop.call_soon_threadsafe(room.release)
        finally:
            asking.cancel()

    async def _ask_all(
        self,
        path: str,
        count: int,
        body: Callable[[int], Mapping[str, Any]],
        outcomes: "SimpleQueue[tuple[int, Answer | BaseException]]",
        url: str | None,
        room: asyncio.Semaphore,
    ) -> None:
        async def ask(number: int) -> None:
            try:
                content = orjson.dumps(body(number))
                outcomes.put((number, await self._patiently(self._post, path, content, url)))
            except Exception as error:
                outcomes.put((number, error))

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await room.acquire()
                group.create_task(ask(number))

    async def _patiently(self, request: Callable[..., Awaitable[Got]], *arguments: Any) -> Got:
        """Return what the request returns. Raises UserError if it stays in vain."""
        patience = _Patience(self.config.wait, self._why_gone)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Temporary),
            wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE_S),
            stop=patience.is_over,
            reraise=True,
        )
        try:
            return await retrying(request, *arguments)
        except _Temporary as error:
            if why := self._why_gone():
                raise UserError(f"{error}: {why}") from error
            waited = f"{_FAULTS} times" if error.is_fault else f"for {self.config.wait:g} s (score.served.wait)"
            kind = UserError if error.is_fault else ServerAway
            raise kind(
                f"{error}: tried {waited}: look at the server's log; once it answers, run this again: what is "
                "finished is kept"
            ) from error

    async def _get(self, url: str, path: str) -> httpx.Response:
        try:
            response = await self._http.get(url + path)
        except httpx.RequestError as error:
            raise _Temporary(url, _cause(error)) from error
        if response.status_code in _UNAVAILABLE:
            raise _Temporary(url, f"{path} answers {response.status_code}")
        return response

    async def _post(self, path: str, content: bytes, named_url: str | None) -> Answer:
        url, rest_s = named_url or await self._slots.get(), 0.0
        try:
            response = await self._http.post(url + path, content=content, headers={"Content-Type": "application/json"})
        except httpx.RequestError as error:
            rest_s = _REST_S
            raise _Temporary(url, _cause(error)) from error
        else:
            return Answer(url, _json(url, path, response))
        finally:
            if named_url is None:
                self._loop.call_later(rest_s, self._slots.put_nowait, url)


def _next(
    outcomes: "SimpleQueue[tuple[int, Answer | BaseException]]", while_waiting: Callable[[], None]
) -> tuple[int, Answer | BaseException]:
    while True:
        try:
            return outcomes.get(timeout=_IDLE_S)
        except Empty:
            while_waiting()


def _json(url: str, path: str, response: httpx.Response) -> Any:
    """Return the JSON of a response. Raises _Temporary if it may be another one later, or UserError."""
    content, status = _parsed(response.content), response.status_code
    if status in _UNAVAILABLE:
        raise _Temporary(url, f"{path} answers {status}")
    if status >= 500 or (status == 200 and content is None):
        problem = f"answers {status}: {error_text(content)}" if status >= 500 else "answers with damaged JSON"
        raise _Temporary(url, f"{path} {problem}", is_fault=True)
    if status != 200:
        raise UserError(
            f"{url}: {path} answers {status}: {error_text(content)}: {_fix(status, path, error_text(content))}"
        )
    return content


def _parsed(content: bytes) -> Any:
    """Return what JSON says; None if it is damaged."""
    try:
        return orjson.loads(content)
    except ValueError:
        pass
    try:
        return json.loads(content)  # it may contain NaN, which Python's servers write; an error can then name the token
    except ValueError:
        return None


def _fix(status: int, path: str, message: str) -> str:
    if status in (401, 403):
        return f"set the environment variable {KEY} to the server's API key"
    if status == 404 and path in _MISSING_API:
        return _MISSING_API[path]
    if "logprobs" in message and "max allowed" in message:
        return "start the server with a larger --max-logprobs (score.top_k + 3), or set a smaller score.top_k"
    if "context length" in message or "max_model_len" in message:
        return "start the server with a larger --max-model-len, or set a smaller score.window"
    return "correct score.served, or start the server as docs/how-to/served-teachers.md says"


def _cause(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return "no answer within score.served.timeout"
    return f"can't be reached ({type(error).__name__}{f': {error}' if str(error) else ''})"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
