"""Options that another one makes pointless: they are refused, since what they ask for would not happen."""

from storage.errors import UserError


def refuse_unread(reason: str, **options: tuple[object, object]) -> None:
    """Raise UserError for options, each with its value and its default, that are set although nothing reads them.

    `reason` says why, after the options' names: "no tasks are named".
    """
    given = [name for name, (value, default) in options.items() if value != default]
    if given:
        raise UserError(f"{', '.join(given)}: not used, as {reason}: leave {'it' if len(given) == 1 else 'them'} out")
