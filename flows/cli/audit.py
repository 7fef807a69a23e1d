"""The command `alm audit`: how exact the targets of chunks are."""

from pathlib import Path
from typing import Annotated

import typer

from alm_pipeline.config import SEEDS, Dtype
from flows.terminal.audit_tables import print_audit
from flows.terminal.console import JsonOption, err, out, user_errors, write_picture
from flows.terminal.options import MODEL, Device, TrustRemoteCode, finite

audit_commands = typer.Typer()


@audit_commands.command()
def audit(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The folder of a finished student, of alignments or of teacher scores.")
    ],
    teacher: Annotated[str | None, typer.Option(help=f"The teacher, if it has moved since it scored: {MODEL}.")] = None,
    student: Annotated[str | None, typer.Option(help="The student's model folder, if it is a copy elsewhere.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="The number of examples to draw, in all.")] = 16,
    tokens: Annotated[
        int, typer.Option(min=2, help="The tokens of each example that are looked at, from its beginning.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="The seed that examples are drawn with.")] = 0,
    tolerance: Annotated[
        float,
        typer.Option(min=0, max=1, callback=finite, help="The share of a sum that may be missing from it."),
    ] = 1e-3,
    budget: Annotated[
        int, typer.Option(min=0, help="The sequences off the canonical path to follow, per example and side.")
    ] = 1000,
    largest: Annotated[int, typer.Option(min=0, help="The number of largest cases to show per side.")] = 10,
    dtype: Annotated[Dtype, typer.Option(help="The dtype to compute in.")] = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a picture of the numbers to this .png file; of a mixture, one per source, as FILE-SOURCE.png.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far the targets of chunks are from their exact values, which do not depend on the tokenizer.

    Draws examples of a student's caches, or of caches alone, and computes the probability of every byte prefix of them
    from one forward pass and the heaviest other tokenizations. Compares the target of each chunk under the three forms
    of objective.debias with it, for the teacher and the student: by script, kind of text, length, position, and what
    stands at both ends. The configuration, the caches and the models are found from the URL. Of a student of a mixture,
    each source is audited by itself, with its own teacher.
    """
    from alm_pipeline.audit.audit import AuditSettings, audit_targets
    from alm_pipeline.audit.drawing import draw_audit
    from alm_pipeline.audit.numbers import audit_document
    from alm_pipeline.audit.sources import AuditSource
    from alm_pipeline.preflight.storage_probe import require_picture
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors(), progress_bars(err):
        if picture:
            require_picture("--picture", picture)
        sources = AuditSource.open(url, teacher=teacher, student=student, trust_remote_code=trust_remote_code)
        settings = AuditSettings(examples, tokens, seed, tolerance, budget, dtype, device, largest)
        reports = audit_targets(sources, settings)
        if picture:
            for report in reports:
                of = f"-{report.source}" if report.source else ""
                write_picture(picture.with_stem(picture.stem + of), draw_audit(report))
    if as_json:
        out.write_json(audit_document(reports))
    else:
        for report in reports:
            print_audit(report)
