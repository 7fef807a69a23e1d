"""The exception for everything that a user can fix."""


class UserError(Exception):
    """Something that the user can fix: the message names the file, row or field, and the fix.

    Commands show only the message, without a traceback; any other exception that escapes is a bug.
    """


class OtherFormatError(UserError):
    """The data is undamaged, but was written by another version of this program: there is nothing to repair."""


REFUSALS = frozenset({401, 403, 404})
"""HTTP statuses of errors that the user can fix: wrong credentials, missing permissions, wrong address."""


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status in a driver's error, or None if the error has none."""
    holders = (error, getattr(error, "response", None))
    statuses = (getattr(holder, name, None) for holder in holders for name in ("status_code", "code"))
    return next((status for status in statuses if isinstance(status, int)), None)
