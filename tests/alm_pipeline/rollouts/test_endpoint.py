"""A served model writes: against a loopback server, also one that fails in every way."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.config import PromptsConfig, SamplingConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.rollouts.endpoint import Endpoint
from alm_pipeline.rollouts.endpoint_writer import EndpointWriter
from alm_pipeline.rollouts.prompts import PromptChoice
from alm_pipeline.rollouts.stage import rollouts_dataset, write_rollouts
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.schemas import TokenKind
from storage.upkeep.verify import verify
from storage.urls import list_names
from tests.alm_pipeline.rollouts.conftest import WritingPair
from tests.alm_pipeline.rollouts.openai_server import OpenAIServer, right_answer, slowly

PROMPTS = PromptsConfig(text_bytes=12, per_shard=8)
CHOICE = PromptChoice(train=18, held_out=4, seed=0, round=0)
SAMPLING = SamplingConfig(max_tokens=9, temperature=0.7, at_once=4)


def write(
    examples: Dataset, root: Path, server: OpenAIServer, **endpoint: Any
) -> tuple[Manifest, Dataset, list[dict[str, Any]]]:
    settings = {"attempts": 3, "timeout_s": 5.0, "sleep": lambda _: None, **endpoint}
    writer = EndpointWriter(Endpoint(server.url, **settings), "a/model:1", SAMPLING)
    found = rollouts_dataset(examples, writer, PROMPTS, SAMPLING, CHOICE)
    rollouts = Dataset(str(root), found.kind, found.label, found.identity)
    manifest = write_rollouts(rollouts, examples, writer, PROMPTS, CHOICE)
    return manifest, rollouts, [row for shard in range(3) for row in rollouts.read_shard(shard).to_pylist()]


@pytest.mark.parametrize("kind", ["texts", "talks"])
def test_every_row_is_asked_for_once_and_counted(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    examples = request.getfixturevalue(kind)
    with OpenAIServer().serving() as server:
        manifest, rollouts, rows = write(examples, tmp_path, server)
        assert write(examples, tmp_path, server)[0] == manifest
    assert len(rows) == len(server.requests) == 22
    assert manifest.counts["prompt_tokens"], manifest.counts["written_tokens"] == (22 * 5, 22 * 3)
    asked = {json.dumps([path, body]): right_answer(path, body) for path, body in server.requests}
    answers = Counter(
        json.dumps(answer["choices"][0].get("message", {}).get("content") or answer["choices"][0].get("text"))
        for answer in asked.values()
    )
    written = Counter(
        json.dumps(
            json.loads(row["messages"])[-1]["content"]
            if row["messages"]
            else row["text"].encode()[row["completion_at"] :].decode()
        )
        for row in rows
    )
    assert written == answers
    assert "written_ids" not in rows[0]
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    assert verify(rollouts.url, checksums=True) == []
    assert [name for name in list_names(rollouts.url) if name == "answers"] == []
    for path, body in server.requests:
        assert path == ("/completions" if kind == "texts" else "/chat/completions")
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("a/model:1", 9, 0.7)


def test_both_sides_end_where_the_text_ended(pair: WritingPair, texts: Dataset, tmp_path: Path) -> None:
    with OpenAIServer().serving() as server:
        _, rollouts, rows = write(texts, tmp_path, server)
    for model in pair:
        tokenizer = ModelReference(model).tokenizer
        tokens = tokens_dataset(rollouts, tokenizer, None)
        tokenize(rollouts, tokens, tokenizer, None)
        encoded = [row for shard in range(3) for row in tokens.read_shard(shard).to_pylist()]
        ends = [row["kinds"][-1] == TokenKind.END_OF_TURN for row in encoded]
        assert ends == [row["finish_reason"] == "stop" for row in rows]


def flaky(answer: tuple[int, bytes | None]) -> Any:
    """The first request of each row gets this answer."""
    return lambda path, body, number: answer if number == 0 else None


FAULTS: dict[str, tuple[int, bytes | None]] = {
    "500": (500, b"oops"),
    "503": (503, b""),
    "429": (429, b'{"error": {"message": "slow down"}}'),
    "cut connection": (200, None),
    "truncated JSON": (200, b'{"choices": [{"te'),
    "fewer bytes than said": (200, b'{"choices": CUT'),
    "not JSON": (200, b"<html>busy</html>"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_asked_again(texts: Dataset, tmp_path: Path, fault: str) -> None:
    waits: list[float] = []
    with OpenAIServer().serving() as right:
        expected = write(texts, tmp_path / "right", right)[2]
    with OpenAIServer(flaky(FAULTS[fault])).serving() as server:
        assert write(texts, tmp_path / "flaky", server, sleep=waits.append)[2] == expected
    assert len(server.requests) == 44
    assert waits == [1.0] * 22


@pytest.mark.bad_input
@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_pass_is_reported(texts: Dataset, tmp_path: Path, fault: str) -> None:
    with (
        OpenAIServer(lambda *_: FAULTS[fault]).serving() as server,
        pytest.raises(UserError, match=r"127\.0\.0\.1.*/completions: .*, 3 times: check the server, and run the same"),
    ):
        write(texts, tmp_path, server)


@pytest.mark.bad_input
def test_a_server_that_does_not_answer_is_asked_again(texts: Dataset, tmp_path: Path) -> None:
    def fault(path: str, body: dict[str, Any], number: int) -> None:
        if number == 0 and body["seed"] % 5 == 0:
            slowly(0.5)

    with OpenAIServer(fault).serving() as server:
        manifest, _, _ = write(texts, tmp_path, server, timeout_s=0.25)
    assert manifest.rows == 22
    assert len(server.requests) > 22


@pytest.mark.bad_input
def test_a_server_that_is_not_there_is_named(texts: Dataset, tmp_path: Path) -> None:
    server = OpenAIServer()
    server._server.server_close()
    with pytest.raises(UserError, match=r"no answer \(.*refused"):
        write(texts, tmp_path, server)


def body_with(**choice: Any) -> bytes:
    right = {"index": 0, "text": " x", "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    return json.dumps({"choices": [{**right, **choice}]}).encode()


WRONG = {
    "no choices": (b"{}", "choices of the answer is missing"),
    "empty choices": (b'{"choices": []}', "choices of the answer holds no object"),
    "choices of another type": (b'{"choices": 3}', "choices of the answer is of type int"),
    "a list": (b"[1]", "answers list and not an object"),
    "text of another type": (body_with(text=4), "text of the answer is of type int"),
    "another reason": (body_with(finish_reason="bored"), "finish_reason of the answer is 'bored'"),
    "no reason": (body_with(finish_reason=None), "finish_reason of the answer is None"),
}
WRONG_MESSAGES = {
    "no message": (body_with(message=None), "message of the answer is of type NoneType"),
    "parts": (body_with(message={"content": [{"type": "text"}]}), "message.content of the answer is of type list"),
    "a call that is none": (body_with(message={"tool_calls": [{"x": 1}]}), "message.tool_calls of the answer has"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "wrong"), [*(("texts", name) for name in WRONG), *(("talks", name) for name in WRONG_MESSAGES)]
)
def test_wrong_fields_are_named_and_not_asked_for_again(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, wrong: str
) -> None:
    content, message = (WRONG | WRONG_MESSAGES)[wrong]
    with OpenAIServer(lambda *_: (200, content)).serving() as server, pytest.raises(UserError) as caught:
        write(request.getfixturevalue(kind), tmp_path, server)
    assert message in str(caught.value)
    assert len({json.dumps(asked) for asked in server.requests}) == len(server.requests)


@pytest.mark.bad_input
@pytest.mark.parametrize(("status", "fix"), [(401, "set OPENAI_API_KEY"), (404, "check the URL, the model's name")])
def test_a_refusal_is_not_asked_for_again(texts: Dataset, tmp_path: Path, status: int, fix: str) -> None:
    said = b'{"error": "The model `a/model:1` does not exist"}'
    with OpenAIServer(lambda *_: (status, said)).serving() as server, pytest.raises(UserError) as caught:
        write(texts, tmp_path, server)
    assert f"status {status} ({said.decode()}): {fix}" in str(caught.value)


@pytest.mark.bad_input
def test_texts_that_can_not_be_used_are_counted(texts: Dataset, tmp_path: Path) -> None:
    kinds = {0: body_with(text=" \n"), 1: body_with(text="\ud800"), 2: body_with(finish_reason="content_filter")}

    def fault(path: str, body: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        content = kinds.get(body["seed"] % 5)
        return None if content is None else (200, content)

    with OpenAIServer(fault).serving() as server:
        manifest, _, rows = write(texts, tmp_path, server)
    expected = Counter(
        {0: "empty", 1: "invalid_utf8", 2: "content_filter"}.get(body["seed"] % 5) for _, body in server.requests
    )
    assert manifest.rows == len(rows) == expected.pop(None)
    assert manifest.dropped == dict(expected)


def test_a_run_that_was_stopped_asks_for_no_answer_twice(texts: Dataset, tmp_path: Path) -> None:
    """The server fails for good after some answers; the second run asks only for the others."""
    with OpenAIServer().serving() as right:
        expected = write(texts, tmp_path / "right", right)[2]
    answered: list[str] = []

    def fault(path: str, body: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        if len(answered) >= 13:
            return 401, b""
        answered.append(body["prompt"] + str(body["seed"]))
        return None

    with OpenAIServer(fault).serving() as server, pytest.raises(UserError):
        write(texts, tmp_path / "stopped", server)
    with OpenAIServer().serving() as server:
        _, rollouts, rows = write(texts, tmp_path / "stopped", server)
    assert rows == expected
    again = [body["prompt"] + str(body["seed"]) for _, body in server.requests]
    assert len(again) == 22 - 13
    assert set(again).isdisjoint(answered)
    assert "answers" not in list_names(rollouts.url)


def test_the_key_is_sent_and_never_stored(texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with OpenAIServer().serving() as server:
        write(texts, tmp_path, server)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-very-secret"}
    assert not any(b"sk-very-secret" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.bad_input
@pytest.mark.parametrize("url", ["ftp://host/v1", "file:///etc/passwd", "host:8000", "", "http://", "http://[::1/v1"])
def test_what_is_not_a_server_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is not the URL of a server: write it as http://host:port/v1"):
        Endpoint(url)
