"""The flow `audit`: how exact the targets of chunks are, as a table and a page with the picture."""

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import Field

from alm_pipeline.config import SEEDS, Dtype, Number, Whole
from flows.execution.inert_run import inert_flow, inert_run
from flows.run_name import run_name
from flows.tasks import log_stages_at_info
from storage.printed.inert import markdown, markdown_code, one_line

if TYPE_CHECKING:
    from alm_pipeline.audit.numbers import AuditReport

Count = Annotated[Whole, Field(ge=1)]
_name = run_name("audit", lambda parameters: f"audit {parameters['url']}")


@inert_flow("audit", _name)
def audit(
    url: str,
    teacher: str | None = None,
    student: str | None = None,
    examples: Count = 16,
    tokens: Annotated[Whole, Field(ge=2)] = 256,
    seed: Annotated[Whole, Field(ge=0, lt=SEEDS)] = 0,
    tolerance: Annotated[Number, Field(ge=0, le=1)] = 1e-3,
    budget: Annotated[Whole, Field(ge=0)] = 1000,
    largest: Annotated[Whole, Field(ge=0)] = 10,
    dtype: Dtype = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure how far the targets of chunks are from their exact values, which do not depend on the tokenizer.

    Args:
        url: The folder of a finished student, of alignments or of teacher scores.
        teacher: The teacher, if it has moved since it scored.
        student: The student's model folder, if it is a copy elsewhere.
        examples: The number of examples to draw.
        tokens: The tokens of each example that are looked at, from its beginning.
        seed: The seed that examples are drawn with.
        tolerance: The share of a sum that may be missing from it.
        budget: The sequences off the canonical path to follow, per example and side.
        largest: The number of largest cases to show per side.
        dtype: The dtype to compute in.
        device: cpu, cuda:1, …; by default the GPU, if there is one.
        trust_remote_code: Whether to run code in a model's folder, such as that of a byte-level student.
    """
    with inert_run():
        from alm_pipeline.audit.audit import AuditSettings
        from alm_pipeline.audit.audit import audit as run_audit
        from alm_pipeline.audit.sources import AuditSource

        log_stages_at_info()
        source = AuditSource.open(url, teacher=teacher, student=student, trust_remote_code=trust_remote_code)
        settings = AuditSettings(examples, tokens, seed, tolerance, budget, dtype, device, largest)
        report = run_audit(source, settings)
        _show(report)
        return report.document()


def _show(report: "AuditReport") -> None:
    title = markdown(f"{report.url}: distance of targets from their exact values, nats")
    create_table_artifact(list(_table(report)), key="alm-audit", description=title)
    create_markdown_artifact("\n\n".join(_page(report)), key="alm-audit-report", description=title)


def _table(report: "AuditReport") -> Iterator[dict[str, str]]:
    from alm_pipeline.audit.tables import number_tables

    for side, grouping, rows in number_tables(report):
        for row in rows:
            cells = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}
            yield {"side": side, "by": grouping, **{name: one_line(value) for name, value in cells.items()}}


def _page(report: "AuditReport") -> Iterator[str]:
    from alm_pipeline.audit.drawing import draw_audit
    from alm_pipeline.audit.tables import case_rows, remarks
    from storage.errors import UserError

    yield f"# {markdown(report.url)}"
    yield "\n".join(f"- {markdown(sentence)}" for sentence in remarks(report))
    try:
        yield f"![numbers](data:image/png;base64,{base64.b64encode(draw_audit(report)).decode()})"
    except UserError as error:  # without matplotlib
        yield markdown(error)
    yield f"## Largest distances with debias {report.debias}"
    yield "\n".join(
        f"- {case['side']}: off by {case['error']:+.3f} ({case['value']:.3f}, exact {case['exact']:.3f}): "
        f"{markdown_code(case['text'])}; teacher {markdown_code(case['teacher_tokens'])}, "
        f"student {markdown_code(case['student_tokens'])}"
        for case in case_rows(report)
    )
