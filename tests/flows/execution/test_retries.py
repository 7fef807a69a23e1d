"""Store and network errors and too little memory are retried; what a user has to fix is not."""

import errno

import aiohttp
import botocore.exceptions
import httpx
import pytest
import torch

from flows.execution.retries import is_worth_retrying
from storage.errors import OtherFormatError, UserError


def google_error(status: int) -> Exception:
    """Like the HttpError of gcsfs: an Exception with a code."""
    error = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})(f"answered {status}")
    error.code = status
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("by peer"),
        TimeoutError("timed out"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        aiohttp.ClientPayloadError("not completed"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        httpx.ConnectError("refused"),
        google_error(503),
    ],
    ids=lambda error: type(error).__name__,
)
def test_worth_a_retry(error: Exception) -> None:
    assert is_worth_retrying(error)


@pytest.mark.parametrize(
    "error",
    [
        UserError("fix this"),
        google_error(403),
        OtherFormatError("of another version"),
        FileNotFoundError("gone"),
        PermissionError("no"),
        ValueError("bad"),
        KeyError("field"),
        AssertionError(),
        RuntimeError("shapes can't be multiplied"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_not_worth_a_retry(error: Exception) -> None:
    assert not is_worth_retrying(error)
