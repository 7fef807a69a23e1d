"""The one exception for what a user can mend."""


class UserError(Exception):
    """Something the user can mend: the message names the file, row or field, and says how.

    Commands show the message alone, without a traceback; anything else that escapes is a bug.
    """


class OtherFormatError(UserError):
    """Whole, but written by another version of this program: nothing to repair."""


REFUSALS = frozenset({401, 403, 404})
"""what a server answers to what the user can mend: who asks, with which rights, for which place"""


def http_status(error: BaseException) -> int | None:
    """The status that a server answered with, where an error of a driver's tells it."""
    told = (error, getattr(error, "response", None))
    statuses = (getattr(each, name, None) for each in told for name in ("status_code", "code"))
    return next((status for status in statuses if isinstance(status, int)), None)
