"""How the corpus says what is wrong with its input."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from storage.errors import UserError


class RowDropped(Exception):
    """A row that gives no document; `reason` is the key that it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def one_line(error: BaseException) -> str:
    """The first line of what an error says, short enough to stand in a message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def failing_as(what: str, mend: str) -> Iterator[None]:
    """Turn whatever fails inside into a `UserError` '<what>: <first line of the error>; <mend>'.

    For calls into file systems and readers only: what they raise has no common type (OSError, EOFError,
    zlib.error, ArrowInvalid, botocore's own, …), hence the broad `except`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {one_line(error)}; {mend}") from error


def require_columns(where: str, wanted: Iterable[str], present: Iterable[str]) -> None:
    """Raise a `UserError` that names the columns of `wanted` which `where` lacks, and those it has."""
    present = list(present)
    missing = [column for column in wanted if column not in present]
    if missing:
        raise UserError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, present))}. "
            "Set corpus.text (a column or a template of them), corpus.messages or corpus.id to what is there."
        )
