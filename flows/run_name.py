"""Names of flow runs, made of their parameters: also of parameters that the run will refuse."""

from collections.abc import Callable, Mapping
from typing import Any

_LONGEST = 200


def run_name(flow: str, describe: Callable[[Mapping[str, Any]], str]) -> Callable[[], str]:
    """Return a function that names a run for Prefect, and never raises: the run is the one to report an error.

    An exception here would be a crash without a reason. Where `describe` raises, the run has the flow's name.
    Characters that are not printable, which a database or a terminal may refuse, are replaced.
    """

    def name() -> str:
        try:
            from prefect.runtime import flow_run

            text = describe(flow_run.parameters)
            printable = "".join(character if character.isprintable() else "\ufffd" for character in text[:_LONGEST])
        except Exception:
            return flow
        return printable or flow

    return name
