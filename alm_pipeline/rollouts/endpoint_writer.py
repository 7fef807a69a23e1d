"""A model behind an OpenAI-compatible endpoint writes: text alone is known of it, not its tokens.

Each answer is kept under the unfinished dataset as soon as it is there, so that none is asked and paid for twice.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from alm_pipeline.config import SamplingConfig
from alm_pipeline.conversations.sections import ASSISTANT
from alm_pipeline.rollouts.answers import is_empty
from alm_pipeline.rollouts.endpoint import Endpoint, Json
from alm_pipeline.rollouts.prompts import Prompt
from alm_pipeline.rollouts.sampling import row_seed
from alm_pipeline.rollouts.written import LeftOut, Written
from alm_pipeline.tokenization.chat.forms import TemplateForm
from storage.errors import UserError
from storage.fingerprints import fingerprint
from storage.kinds.rollouts import FINISHED, TRUNCATED
from storage.printed.secrets import masked
from storage.urls import join_url, publish, read_bytes

_FORM = TemplateForm(arguments="text", needs_ids=True, reasoning="reasoning_content")
"""OpenAI's form of messages"""
_REASONS = {"stop": FINISHED, "tool_calls": FINISHED, "function_call": FINISHED, "length": TRUNCATED}


@dataclass(frozen=True)
class EndpointWriter:
    """A served model by name."""

    endpoint: Endpoint
    model: str
    sampling: SamplingConfig
    revision: str | None = None
    """distinguishes states of the model that share its name"""
    has_ids = False

    @property
    def label(self) -> str:
        """A short readable name."""
        name = PurePosixPath(self.model).name
        return "".join(letter if letter.isascii() and (letter.isalnum() or letter in ".-_") else "-" for letter in name)

    def identity(self) -> dict[str, Any]:
        """Return what decides what it writes, as far as that can be known of a served model."""
        return {"served_model": self.model, "revision": self.revision}

    def check_unchanged(self) -> None:
        """Do nothing: what a server does can't be seen."""

    def release(self) -> None:
        """Do nothing: the model is the server's."""

    def write(self, prompts: Sequence[Prompt], rounds: Sequence[int], kept: str) -> list[Written | LeftOut]:
        """Write on each prompt, as `Writer.write` does."""
        with ThreadPoolExecutor(self.sampling.at_once) as pool:
            waiting = [pool.submit(self._write, *row, kept) for row in zip(prompts, rounds, strict=True)]
            try:
                return [future.result() for future in waiting]
            finally:
                pool.shutdown(cancel_futures=True)

    def _write(self, prompt: Prompt, round_: int, kept: str) -> Written | LeftOut:
        path, body = self._request(prompt, round_)
        file = join_url(kept, f"{fingerprint({'path': path, 'id': prompt.id, **body})}.json")
        content = read_bytes(file)
        if content is None:
            content = publish(file, json.dumps(self._checked(path, self.endpoint.post(path, body))).encode())
        return self._read(prompt, json.loads(content))

    def _request(self, prompt: Prompt, round_: int) -> tuple[str, Json]:
        sampling = self.sampling
        body: Json = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": row_seed(sampling.seed, round_, prompt.id),
        }
        if sampling.top_k is not None:  # not in OpenAI's own interface; vLLM, SGLang and others have it
            body["top_k"] = sampling.top_k
        if prompt.text is not None:
            return "/completions", {**body, "prompt": prompt.text}
        body["messages"] = _FORM.messages(prompt.messages or [])
        arguments = dict(prompt.arguments or {})
        if tools := arguments.pop("tools", None):
            body["tools"] = tools
        if arguments:
            body["chat_template_kwargs"] = arguments
        return "/chat/completions", body

    def _checked(self, path: str, answer: Json) -> Json:
        """Return what is kept of an answer. Raises UserError naming the field that is missing or wrong."""
        where = self._where(path)
        choice = _field(where, answer, "choices", list)
        if not choice or not isinstance(choice[0], dict):
            raise _wrong(where, "choices", "holds no object")
        kept: Json = {"finish_reason": choice[0].get("finish_reason")}
        if path == "/completions":
            kept["text"] = _field(where, choice[0], "text", str)
        else:
            kept["message"] = _message(where, _field(where, choice[0], "message", dict))
        if kept["finish_reason"] not in (*_REASONS, "content_filter"):
            raise _wrong(where, "finish_reason", f"is {kept['finish_reason']!r}")
        usage = answer.get("usage") or {}
        counts = {name: usage.get(name) if isinstance(usage, dict) else None for name in _COUNTS}
        return {**kept, **{name: count if isinstance(count, int) else 0 for name, count in counts.items()}}

    def _where(self, path: str) -> str:
        return f"{masked(self.endpoint.url.rstrip('/'))}{path}"

    def _read(self, prompt: Prompt, answer: Json) -> Written | LeftOut:
        if answer["finish_reason"] not in _REASONS:
            return LeftOut.FILTERED
        if not _is_unicode(answer.get("text"), answer.get("message")):
            return LeftOut.INVALID_UTF8
        counts = _REASONS[answer["finish_reason"]], answer["prompt_tokens"], answer["completion_tokens"]
        if prompt.text is not None:
            if not answer["text"].strip():
                return LeftOut.EMPTY
            return Written(prompt, prompt.text + answer["text"], None, len(prompt.text.encode()), *counts)
        if is_empty(answer["message"]):
            return LeftOut.EMPTY
        messages = prompt.messages or []
        return Written(prompt, None, [*messages, answer["message"]], len(messages), *counts)


_COUNTS = ("prompt_tokens", "completion_tokens")


def _message(where: str, message: Json) -> Json:
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise _wrong(where, "message.content", f"is of type {type(content).__name__}")
    found: Json = {"role": ASSISTANT, "content": content or ""}
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thoughts, str) and thoughts:
        found["reasoning_content"] = thoughts
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
            raise _wrong(where, "message.tool_calls", "has something that is not a call of a function")
        found["tool_calls"] = calls
    return found


def _field(where: str, values: Mapping[str, Any], name: str, type_: type) -> Any:
    value = values.get(name)
    if not isinstance(value, type_):
        raise _wrong(where, name, "is missing" if name not in values else f"is of type {type(value).__name__}")
    return value


def _wrong(where: str, field: str, problem: str) -> UserError:
    return UserError(
        f"{where}: {field} of the answer {problem}: it is not what OpenAI's interface answers; check that the server "
        "is compatible with it"
    )


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _is_unicode(*values: Any) -> bool:
    """Return whether no text has a lone surrogate, which JSON can spell and UTF-8 can't."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
