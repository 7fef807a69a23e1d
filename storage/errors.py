"""The exception for everything that a user can fix, and the boundary that turns a library's errors into it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from storage.printed.inert import visible


class UserError(Exception):
    """Something that the user can fix: the message names the file, row or field, and the fix.

    Commands show only the message, without a traceback; any other exception that escapes is a bug. The message goes
    into logs, states of runs and terminals, so it holds no secrets and no control characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


class OtherFormatError(UserError):
    """The data is undamaged, but was written by another version of this program: there is nothing to repair."""


REFUSALS = frozenset({401, 403, 404})
"""HTTP statuses of errors that the user can fix: wrong credentials, missing permissions, wrong address."""

# statuses that a server would return again
_FINAL = REFUSALS | {400, 410}

# every error of these packages comes from the network or a server; others that they raise are OSErrors
_NETWORK = {
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "gcsfs",
    "google",
    "httpcore",
    "httpx",
    "httpx2",
    "requests",
    "urllib3",
}
_MEMORY = {"OutOfMemoryError"}

TRANSIENT = (errno.EIO, errno.EBUSY, errno.EAGAIN, getattr(errno, "EREMOTEIO", errno.EIO))
"""How drivers report a server that is down, overloaded or at fault, and how a network disk reports that it is away."""


@contextmanager
def user_error(subject: str, fix: str) -> Iterator[None]:
    """Turn any error of a library inside into a UserError '<subject>: <cause>; <fix>', with the error as its cause.

    For narrow calls into a library whose errors have no common type. A UserError passes, and so does what may go away
    by itself (`is_temporary`), with the subject as a note, because callers retry that. So does everything that is not
    an Exception (Ctrl-C), except the panic of a library written in Rust, which is an error like any other.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if is_temporary(error):
            error.add_note(subject)
            raise
        if not (isinstance(error, Exception) or _is_panic(error)):
            raise
        raise UserError(f"{subject}: {cause(error)}; {fix}") from error


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Begin the message of any UserError inside with what it is about: '<subject>: <message>'."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{subject}: {error}") from error


def cause(error: BaseException) -> str:
    """Return the first line of an error's message, short enough for another message; the second too after a colon.

    It has the class of the error where the message alone says nothing: the key of a KeyError, or no message at all.
    """
    lines = [line for text in str(error).splitlines() if (line := text.strip())]
    line = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(" :;.,")[:300]
    if not line:
        return type(error).__name__
    return f"{type(error).__name__}: {line}" if isinstance(error, LookupError) or _is_panic(error) else line


def is_temporary(error: BaseException) -> bool:
    """Return whether an error comes from the network, a disk that is away, or too little memory."""
    if is_final(error):
        return False
    if isinstance(error, ConnectionError | TimeoutError | MemoryError):
        return True
    return (isinstance(error, OSError) and error.errno in TRANSIENT) or is_of_network_or_memory(error)


def is_of_network_or_memory(error: BaseException) -> bool:
    """Return whether an error's class belongs to a network package, or is a device's lack of memory."""
    kinds = type(error).__mro__
    return any(kind.__module__.split(".")[0] in _NETWORK or kind.__name__ in _MEMORY for kind in kinds)


def is_final(error: BaseException) -> bool:
    """Return whether a server would answer the same again: it refused, or does not know the address."""
    return http_status(error) in _FINAL


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status in a driver's error, or None if the error has none."""
    holders = (error, getattr(error, "response", None))
    statuses = (getattr(holder, name, None) for holder in holders for name in ("status_code", "status", "code"))
    return next((status for status in statuses if isinstance(status, int)), None)


def _is_panic(error: BaseException) -> bool:
    # every extension module has a class of its own, and none of them can be imported
    return type(error).__name__ == "PanicException"
