"""Log records, warnings and errors without secrets and control characters, whichever library makes them."""

import contextlib
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from storage.printed.inert import visible
from storage.printed.secrets import masked, without_secrets


class InertRecord(logging.LogRecord):
    """A log record that is masked and escaped when its text is made, and so in every handler."""

    _exception_text: str | None = None

    def getMessage(self) -> str:
        return visible(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        """The traceback, which formatters store here before they append it."""
        return self._exception_text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._exception_text = visible(text) if text else text


def make_output_inert() -> None:
    """Make what any library of this process logs, warns of or fails with in a thread inert: it may hold URLs."""
    logging.setLogRecordFactory(InertRecord)
    warnings.formatwarning = _inert_warning
    threading.excepthook = _print_inert_error


def _inert_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    # without the line of code, which says nothing to a user
    return f"{visible(f'{filename}:{lineno}: {category.__name__}: {message}')}\n"


def _print_inert_error(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and failed.exc_type is not SystemExit:
        print(f"in a thread: {traceback_text(failed.exc_value)}", file=sys.stderr)


def traceback_text(error: BaseException) -> str:
    """Return an error's traceback, with the errors that caused it, without secrets and control characters."""
    return visible("".join(traceback.format_exception(error)))


def mask_error(error: BaseException) -> None:
    """Take the secrets out of an error, its notes and the errors that caused it; their types stay.

    For the errors of other libraries, whose texts others show and which others store: Prefect keeps them as the state
    of a run, and pickled. So requests and responses that an error holds are replaced by their masked texts, too.
    """
    for part in _with_causes(error):
        texts = masked(str(part)), masked(repr(part))
        part.args = tuple(_masked(argument) for argument in part.args)
        names = ["filename", "filename2", "strerror"] if isinstance(part, OSError) else []
        for name in [*getattr(part, "__dict__", ()), *names]:
            value = getattr(part, name)
            if _masked(value) is not value:
                with contextlib.suppress(AttributeError, TypeError):  # it can't be set
                    setattr(part, name, _masked(value))
        if not _has_texts(part, texts):
            _set_texts(part, *texts)


def has_secret_text(error: BaseException) -> bool:
    """Return whether an error's own text or representation holds a secret."""
    return any(masked(text) != text for text in (str(error), repr(error)))


def _masked(value: Any) -> Any:
    """Return the value itself where it has no secrets, otherwise plain values and texts without them."""
    if isinstance(value, BaseException) or masked(repr(value)) == repr(value):
        return value
    if isinstance(value, str):
        return masked(value)
    if type(value) in (list, tuple):
        return type(value)(map(_masked, value))
    return without_secrets(value) if type(value) is dict else masked(repr(value))


def _has_texts(error: BaseException, texts: tuple[str, str]) -> bool:
    try:
        return (str(error), repr(error)) == texts
    except Exception:  # its text is made of what has been replaced
        return False


def _set_texts(error: BaseException, text: str, representation: str) -> None:
    """Give the error a class of its own with these texts, where Python allows that."""
    kind = type(error)
    methods = {"__str__": lambda _: text, "__repr__": lambda _: representation}
    try:
        error.__class__ = type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})
    except TypeError:  # an error of Python's own
        error.args = (text,)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        part = waiting.pop()
        if part is None or any(part is other for other in seen):
            continue
        seen.append(part)
        yield part
        waiting += [part.__cause__, part.__context__]
        waiting += getattr(part, "exceptions", ())
