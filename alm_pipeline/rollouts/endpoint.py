"""Requests to an OpenAI-compatible endpoint: retried while the server is at fault, and refused with what is wrong.

An answer that takes time and money to get again is kept by its caller; here each request stands for itself.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import UserError
from storage.printed.secrets import masked

KEY_VARIABLE = "OPENAI_API_KEY"
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_ATTEMPTS = 6
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
_EXCERPT = 200

Json = dict[str, Any]


class _Temporary(Exception):
    """The server, or the way to it, may work again soon."""

    def __init__(self, problem: str, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Endpoint:
    """A server with OpenAI's interface."""

    url: str
    """up to and with `/v1`"""
    timeout_s: float = 600.0
    """for one answer"""
    attempts: int = _ATTEMPTS
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        """Raise UserError for what is not a URL of a server."""
        try:
            parts = urllib.parse.urlsplit(self.url)
            is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_server = False
        if not is_server:
            raise UserError(f"{self._name}: is not the URL of a server: write it as http://host:port/v1")

    def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """Return the JSON object that the server answers.

        Waits and asks again after a timeout, a broken connection, an answer that is not whole, or a status that may
        pass. Raises UserError if that does not help, or the request is refused.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return self._ask(path, body)
            except _Temporary as error:
                if attempt == self.attempts:
                    raise UserError(
                        f"{self._name}{path}: {error}, {self.attempts} times: check the server, and run the same "
                        "command again; the answers so far are kept"
                    ) from error
                wait = _FIRST_WAIT_S * 2 ** (attempt - 1) if error.wait_s is None else error.wait_s
                self.sleep(min(wait, _LONGEST_WAIT_S))
        raise AssertionError("the last attempt returns or raises")

    @property
    def _name(self) -> str:
        return masked(self.url.rstrip("/"))

    def _ask(self, path: str, body: Mapping[str, Any]) -> Json:
        try:
            with urllib.request.urlopen(self._request(path, body), timeout=self.timeout_s) as response:
                content: bytes = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(path, error) from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut short
            raise _Temporary(
                f"no answer ({getattr(error, 'reason', None) or error or type(error).__name__})"
            ) from error
        except ValueError as error:
            raise UserError(f"{self._name}: is not a URL of HTTP ({error}): write it as http://host:port/v1") from error
        return self._parsed(path, content)

    def _request(self, path: str, body: Mapping[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode()
        return urllib.request.Request(f"{self.url.rstrip('/')}{path}", data=data, headers=headers, method="POST")

    def _refusal(self, path: str, error: urllib.error.HTTPError) -> Exception:
        try:
            content = error.read(_EXCERPT * 4)
        except (OSError, http.client.HTTPException):
            content = b""
        said = " ".join(content.decode(errors="replace").split())[:_EXCERPT]
        problem = f"status {error.code}" + (f" ({said})" if said else "")
        if error.code in _TEMPORARY:
            wait = error.headers.get("Retry-After", "")
            return _Temporary(problem, float(wait) if wait.isascii() and wait.isdigit() else None)
        fix = f"set {KEY_VARIABLE}" if error.code in (401, 403) else "check the URL, the model's name and the settings"
        return UserError(f"{self._name}{path}: {problem}: {fix}")

    def _parsed(self, path: str, content: bytes) -> Json:
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise _Temporary(f"an answer that is not whole JSON ({len(content):,} bytes)") from error
        if not isinstance(answer, dict):
            raise UserError(
                f"{self._name}{path}: answers {type(answer).__name__} and not an object: it is not an "
                "OpenAI-compatible endpoint; its URL usually ends in /v1"
            )
        return answer
