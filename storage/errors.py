"""The one exception for what a user can mend."""


class UserError(Exception):
    """Something the user can mend: the message names the file, row or field, and says how.

    Commands show the message alone, without a traceback; anything else that escapes is a bug.
    """


class OtherFormatError(UserError):
    """Whole, but written by another version of this program: nothing to repair."""
