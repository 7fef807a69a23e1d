"""Names of flow runs, made of their parameters: also of parameters that the run will refuse."""

from collections.abc import Callable, Mapping
from typing import Any

from storage.printed.inert import one_line

_LONGEST = 200


def run_name(flow: str, describe: Callable[[Mapping[str, Any]], str]) -> Callable[[], str]:
    """Return a function that names a run for Prefect, and never raises: the run is the one to report an error.

    An exception here would be a crash without a reason. Where `describe` raises, the run has the flow's name.
    It is inert and without secrets.
    """

    def name_of_run() -> str:
        try:
            from prefect.runtime import flow_run

            name = one_line(describe(flow_run.parameters))[:_LONGEST]
        except Exception:
            return flow
        return name or flow

    return name_of_run
