"""Requests to an OpenAI-compatible endpoint: retried while the server is at fault, and refused with what is wrong.

Requests are independent. Answers cost time and money, so the caller stores them.
"""

import json
import os
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

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
        tries = Retrying(
            retry=retry_if_exception_type(_Temporary),
            stop=stop_after_attempt(self.attempts),
            wait=_pause_s,
            sleep=self.sleep,
            reraise=True,
        )
        try:
            return tries(self._ask, path, body)
        except _Temporary as error:
            raise UserError(
                f"{self._name}{path}: {error}, {self.attempts} times: check the server, and run the same "
                "command again; the answers so far are kept"
            ) from error

    @property
    def _name(self) -> str:
        return masked(self.url.rstrip("/"))

    def _ask(self, path: str, body: Mapping[str, Any]) -> Json:
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.url.rstrip('/')}{path}"
        try:
            with httpx.stream("POST", url, json=body, headers=headers, timeout=self.timeout_s) as response:
                if not response.is_success:
                    raise self._refusal(path, response)
                content = response.read()
        except httpx.RequestError as error:  # refused, reset, timed out, cut short
            raise _Temporary(f"no answer ({str(error) or type(error).__name__})") from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise UserError(f"{self._name}: is not a URL of HTTP ({error}): write it as http://host:port/v1") from error
        return self._parsed(path, content)

    def _refusal(self, path: str, response: httpx.Response) -> Exception:
        try:
            content = response.read()[: _EXCERPT * 4]
        except httpx.RequestError:
            content = b""
        said = " ".join(content.decode(errors="replace").split())[:_EXCERPT]
        problem = f"status {response.status_code}" + (f" ({said})" if said else "")
        if response.status_code in _TEMPORARY:
            wait = response.headers.get("Retry-After", "")
            return _Temporary(problem, float(wait) if wait.isascii() and wait.isdigit() else None)
        key_is_wrong = response.status_code in (401, 403)
        fix = f"set {KEY_VARIABLE}" if key_is_wrong else "check the URL, the model's name and the settings"
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


def _pause_s(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: what the server asked for, or twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, _Temporary) else None
    growing = wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
    return growing(state) if asked is None else min(asked, _LONGEST_WAIT_S)
