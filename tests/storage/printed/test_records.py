"""Log records and errors of any library lose their secrets, and keep their types."""

import io
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import botocore.exceptions
import cloudpickle
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from storage.printed.records import InertRecord, has_secret_text, make_output_inert, mask_error, traceback_text

ROOT = Path(__file__).parents[3]
S = "hunter2-XYZ"
LINK = f"https://user:{S}@host/a.jsonl?sig={S}"
HEADERS = CIMultiDictProxy(CIMultiDict({"Authorization": f"Basic {S}"}))
REQUEST = aiohttp.RequestInfo(URL(LINK), "GET", HEADERS, URL(LINK))


class _Own(Exception):
    def __init__(self, url: str) -> None:
        super().__init__("failed")
        self.url, self.tried = url, [url]

    def __str__(self) -> str:
        return f"{self.url} after {self.tried}"


ERRORS: list[Exception] = [
    ValueError(LINK),
    KeyError(LINK),
    FileNotFoundError(2, "No such file", LINK),
    OSError(f"{LINK} is away"),
    PermissionError(13, f"denied: {LINK}", f"/cache/{LINK}"),
    UnicodeError(LINK, 3),
    aiohttp.ClientResponseError(REQUEST, (), status=403, message="Forbidden"),
    aiohttp.InvalidURL(LINK),
    botocore.exceptions.EndpointConnectionError(endpoint_url=LINK),
    _Own(LINK),
    RuntimeError({"key": S, "secret": S}, [LINK]),
]
errors = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a handler of another library's logger writes."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    before, logger, written = logging.getLogRecordFactory(), logging.getLogger("other.library"), io.StringIO()
    make_output_inert()
    logger.addHandler(handler := logging.StreamHandler(written))
    yield written
    logger.removeHandler(handler)
    logging.setLogRecordFactory(before)


OUTPUTS = {
    "warning": "import warnings; warnings.warn(text)",
    "thread": "import threading; thread = threading.Thread(target=fail); thread.start(); thread.join()",
    "log": "import logging; logging.getLogger('x').warning(text)",
    "last resort": "import logging; logging.error('%s', text)",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("output", OUTPUTS)
def test_whatever_a_library_writes_is_inert(output: str) -> None:
    script = (
        f"from storage.printed.records import make_output_inert; make_output_inert(); text = {LINK!r} + ' \\x1b[31m'\n"
        f"def fail(): raise ValueError(text)\n{OUTPUTS[output]}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert r"https://***@host/a.jsonl?sig=*** \x1b[31m" in done.stderr
    assert S not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.bad_input
@errors
def test_a_logged_error_has_no_secret(error: Exception, log: io.StringIO) -> None:
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError(f"can't read {LINK}\x1b[31m") from cause
    except RuntimeError as raised:
        logging.getLogger("other.library").exception("%s: %r", LINK, error)
        shown = log.getvalue() + traceback_text(raised)
    assert S not in shown
    assert "\x1b" not in shown
    assert "https://***@host/a.jsonl?sig=***" in shown
    assert "Traceback" in shown


def test_records_of_logging_are_inert(log: io.StringIO) -> None:
    logging.getLogger("other.library").error("%s and %d\udcff", LINK, 7)
    assert log.getvalue() == "https://***@host/a.jsonl?sig=*** and 7\\xff\n"
    assert isinstance(logging.makeLogRecord({"msg": "x"}), InertRecord)


@pytest.mark.bad_input
@errors
def test_an_error_without_its_secrets_is_of_the_same_type(error: Exception) -> None:
    kind, errno = type(error), getattr(error, "errno", None)
    error.add_note(f"{LINK}: can't be read")
    outer = RuntimeError("outer")
    outer.__cause__, error.__context__ = error, ValueError(LINK)
    mask_error(outer)
    texts = [str(error), repr(error), *error.__notes__, str(error.__context__), repr(error.args), str(vars(error))]
    assert [text for text in texts if S in text] == []
    assert isinstance(error, kind)
    assert getattr(error, "errno", None) == errno
    assert not has_secret_text(error)
    assert "***" in str(error)
    assert S.encode() not in cloudpickle.dumps(error)  # as Prefect stores it
