"""The standard streams of a command: any character can be written, and a stream that is gone ends it quietly."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

BROKEN_PIPE = 128 + 13
"""The exit code of a command whose reader has gone, as a shell reports it for SIGPIPE."""


def prepare_streams() -> None:
    """Make the standard streams writable, whatever the locale says and whether or not they were closed.

    In a locale whose file names are not UTF-8, the process starts again in Python's UTF-8 mode: the same dataset would
    have another name there than in its manifest.
    """
    _require_utf8_names()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next file that is opened would get this number, and our output
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _require_utf8_names() -> None:
    if sys.getfilesystemencoding().lower() in ("utf-8", "utf8") or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", encoding)  # as the terminal expects it
    os.execv(sys.executable, sys.orig_argv)


@contextlib.contextmanager
def writing(stream: TextIO | None) -> Iterator[None]:
    """Exit where the stream can't be written: quietly if its reader has gone, otherwise with a sentence."""
    try:
        yield
    except OSError as error:
        _replace_by_null(stream)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(BROKEN_PIPE) from error
        raise SystemExit(f"error: the output can't be written: {error.strerror or error}") from error


def flush_streams() -> None:
    """Write what is buffered. At the interpreter's own end, an error would be shown as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            with writing(stream):
                stream.flush()


def _replace_by_null(stream: TextIO | None) -> None:
    """What is left in the stream's buffer would fail again when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]  # None has no fileno
        os.close(null)
