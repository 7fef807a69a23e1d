"""What `alm check` prints, and the preflight of `alm run`, which comes before a Prefect server starts."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from alm_pipeline.config import AlmConfig
from flows.stages import PHASES, Until
from flows.storage_block import is_block, storage_root
from flows.terminal.console import err, out

if TYPE_CHECKING:
    from alm_pipeline.preflight.findings import Finding, Severity

_STYLES: "dict[Severity, str]" = {"error": "bold red", "warning": "bold yellow"}


def require_ready(config: AlmConfig, storage: str, until: Until) -> None:
    """Raise UserError with all that would stop a run. The run then uses what this opens.

    Does nothing for a storage whose credentials a Prefect server has: the run itself checks then, once that is there.
    """
    from flows.execution.shared_pipeline import pipeline_of

    if not is_block(storage):
        pipeline_of(config.model_dump_json(), storage).require_ready(PHASES[until])


def print_check(config: AlmConfig, storage: str, until: Until, *, as_json: bool) -> None:
    """Print what the preflight finds; exit with 1 if a run would stop."""
    from flows.execution.shared_pipeline import pipeline_of

    start = time.monotonic()
    findings = pipeline_of(config.model_dump_json(), storage_root(storage)).preflight(PHASES[until])
    if as_json:
        out.write_json({"findings": [asdict(found) for found in findings]})
    else:
        _print(findings, time.monotonic() - start)
    if _count(findings, "error"):
        raise typer.Exit(1)


def _print(findings: "Sequence[Finding]", seconds: float) -> None:
    for found in findings:
        out.print(Text.assemble((found.severity, _STYLES[found.severity]), ": ", found.text), soft_wrap=True)
    errors, warnings = _count(findings, "error"), _count(findings, "warning")
    counted = ", ".join(
        f"{count} {name}{'' if count == 1 else 's'}" for count, name in ((errors, "error"), (warnings, "warning"))
    )
    if errors:
        err.print_line(f"{counted}: this run would stop")
    else:
        out.print_line(f"ready to run: {counted}, checked in {seconds:.1f} s")


def _count(findings: "Sequence[Finding]", severity: "Severity") -> int:
    return sum(found.severity == severity for found in findings)
