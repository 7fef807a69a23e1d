"""Log records and errors whose texts hold no secrets and no control characters, whichever library makes them."""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from typing import Any

from storage.printed.inert import visible
from storage.printed.secrets import masked


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


def make_log_records_inert() -> None:
    """Let every logger of this process make inert records: those of other libraries hold URLs, too."""
    logging.setLogRecordFactory(InertRecord)


def traceback_text(error: BaseException) -> str:
    """Return an error's traceback, with the errors that caused it, without secrets and control characters."""
    return visible("".join(traceback.format_exception(error)))


def mask_error(error: BaseException) -> None:
    """Take the secrets out of an error, its notes and the errors that caused it; their types stay.

    For the errors of other libraries, whose texts others show and store: Prefect keeps them as the state of a run.
    """
    for part in _with_causes(error):
        part.args = tuple(_masked(argument) for argument in part.args)
        names = ["filename", "filename2", "strerror"] if isinstance(part, OSError) else []
        for name in [*getattr(part, "__dict__", ()), *names]:
            value = getattr(part, name)
            if _masked(value) != value:
                with contextlib.suppress(AttributeError, TypeError):  # it can't be set
                    setattr(part, name, _masked(value))
        # the text may come from elsewhere: a request, a response, an object of C
        if has_secret_text(part):
            _mask_text(part)


def has_secret_text(error: BaseException) -> bool:
    """Return whether an error's own text or representation holds a secret."""
    return any(masked(text) != text for text in (str(error), repr(error)))


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(_masked, value))
    if type(value) is dict:
        return {_masked(key): _masked(item) for key, item in value.items()}
    return value


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


def _mask_text(error: BaseException) -> None:
    """Give the error a class of its own whose texts are masked, where Python allows that."""
    try:
        error.__class__ = _masked_kind(type(error))
    except TypeError:  # an error of Python's own holds an object whose text has a secret
        error.args = (masked(str(error)),)


def _masked_kind(kind: type[BaseException]) -> type[BaseException]:
    def text(self: BaseException) -> str:
        return masked(kind.__str__(self))

    def representation(self: BaseException) -> str:
        return masked(kind.__repr__(self))

    return type(kind.__name__, (kind,), {"__str__": text, "__repr__": representation, "__module__": kind.__module__})
