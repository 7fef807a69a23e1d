"""The boundary: any error of a library becomes one sentence, and what callers retry or the user stops passes."""

import ast
import errno
import importlib
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from botocore.exceptions import EndpointConnectionError
from httpx import ConnectError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import BPE

from storage.errors import OtherFormatError, UserError, user_error

FOREIGN = [
    (ImportError("Loading a GPTQ model requires optimum"), "Loading a GPTQ model requires optimum"),
    (SafetensorError("Error while deserializing header: incomplete"), "Error while deserializing header: incomplete"),
    (RuntimeError("\n\nsize mismatch\n\tlayer.weight"), "size mismatch;"),
    (
        TypeError("Validation error for 'head_dim':\n    expected int, got str\n    of x"),
        "'head_dim': expected int, got",
    ),
    (AttributeError("'NoneType' object has no attribute 'get'"), "'NoneType' object has no attribute 'get'"),
    (KeyError("vocab_size"), "KeyError: 'vocab_size'"),
    (IndexError("list index out of range"), "IndexError: list index out of range"),
    (AssertionError(), "AssertionError"),
    (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth exceeded"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "[Errno 21] Is a directory: 'x'"),
    (OSError("no file named model.safetensors"), "no file named model.safetensors"),
    (ValueError("long " * 400), "long long"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("error", "cause"), [pytest.param(error, cause, id=type(error).__name__) for error, cause in FOREIGN]
)
def test_an_error_becomes_one_sentence(error: Exception, cause: str) -> None:
    with pytest.raises(UserError, match=re.escape(cause)) as caught, user_error("model", "save it again"):
        raise error
    message = str(caught.value)
    assert message.startswith("model: ")
    assert message.endswith("; save it again")
    assert "\n" not in message
    assert len(message) < 350
    assert caught.value.__cause__ is error


@pytest.mark.bad_input
def test_a_panic_is_an_error() -> None:
    state = json.loads(Tokenizer(BPE({"a": 0}, [])).to_str())
    state["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    with pytest.raises(UserError, match="PanicException: `stride` must be"), user_error("tokenizer", "fetch it again"):
        tokenizer.encode("aaaaa")


@pytest.mark.parametrize(
    "error",
    [
        UserError("said already"),
        OtherFormatError("of another version"),
        KeyboardInterrupt(),
        SystemExit(3),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        ConnectionResetError("by peer"),
        TimeoutError("timed out"),
        OSError(errno.EIO, "Input/output error"),
        ConnectError("refused"),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_others_handle_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, user_error("model", "save it again"):
        raise error
    assert caught.value is error


PROJECT = Path(__file__).parents[2]


def kinds_of_user_error() -> Iterator[type[UserError]]:
    for path in (
        file for package in ("alm_pipeline", "storage", "flows") for file in (PROJECT / package).rglob("*.py")
    ):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and "UserError" in map(ast.unparse, node.bases):
                module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
                yield getattr(importlib.import_module(module), node.name)


def test_every_kind_goes_from_one_process_to_another() -> None:
    kinds = list(kinds_of_user_error())
    assert len(kinds) >= 6
    for kind in (UserError, *kinds):
        error = kind("a.jsonl: is wrong; fix it")
        error.noted = 1  # type: ignore[attr-defined]
        received = pickle.loads(pickle.dumps(error))
        assert type(received) is kind
        assert str(received) == str(error)
        assert received.noted == 1
