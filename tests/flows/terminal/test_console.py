"""Errors of the network, the disk and memory end a command with one sentence."""

import errno

import pytest
import s3fs
import typer
from typer.testing import CliRunner

from flows.cli.app import app
from flows.terminal.console import user_errors
from storage.errors import user_error

PASSING = [
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError("timed out"),
    MemoryError(),
    OSError(errno.EIO, "Input/output error", "/data/a"),
    OSError(errno.ENOSPC, "No space left on device", "/data/a"),
    OSError(errno.EROFS, "Read-only file system", "/data/a"),
    PermissionError(errno.EACCES, "Permission denied", "/data/a"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize("error", PASSING, ids=lambda error: f"{type(error).__name__} {error}")
def test_what_may_pass_is_one_sentence(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, user_errors():
        raise error
    shown = capsys.readouterr().err
    assert caught.value.exit_code == 1
    assert shown.startswith(f"error: {str(error) or 'MemoryError'}; run the same command again once")
    assert shown.count("\n") == 1


def test_it_names_what_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), user_errors(), user_error("cannot read s3://bucket/a", "fix it"):
        raise TimeoutError("timed out")
    assert capsys.readouterr().err.startswith("error: cannot read s3://bucket/a: timed out; run")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), typer.BadParameter("wrong")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)), user_errors():
        raise error


@pytest.mark.bad_input
@pytest.mark.parametrize("command", ["list"])
def test_a_store_whose_server_is_down_is_one_sentence(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()  # instances keep the endpoint from the environment
    result = CliRunner().invoke(app, [command, "s3://bucket/down"])
    s3fs.S3FileSystem.clear_instance_cache()
    assert isinstance(result.exception, SystemExit), result.exception
    assert "error: s3://bucket/down" in result.stderr
    assert "Could not connect to the endpoint URL" in result.stderr
