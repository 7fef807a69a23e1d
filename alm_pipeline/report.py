"""What a run made, in a short table: read from the manifests alone."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Column, Table

from alm_pipeline.pipeline import Pipeline


class Summary(BaseModel):
    """The numbers of a run; those of the student are None after a run that stopped at the teacher's scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int
    held_out_examples: int
    text_bytes: int
    dropped: dict[str, int]
    """by dataset and reason"""
    teacher_tokens: int
    student_tokens: int
    chunks: int
    aligned_share: float
    """of the text's bytes"""
    cache_bytes_a_teacher_token: float
    """both sides' tokens, the alignment and the scores, as stored"""
    bits_per_byte: dict[str, float] | None
    """held-out: of the teacher, the student before and after"""
    initialization: dict[str, int]
    """rows of the student's new embedding by origin; empty where it kept its tokenizer"""
    places: dict[str, str]


def summarize(pipeline: Pipeline, *, with_student: bool = True) -> Summary:
    """Gather the summary of a finished run. Raises UserError where a stage is not complete."""
    manifests = {name: dataset.complete_manifest() for name, dataset in pipeline.caches.items()}
    examples = manifests["examples"]
    cached = [manifests[name] for name in ("teacher_tokens", "student_tokens", "alignments", "scores")]
    teacher_tokens = manifests["teacher_tokens"].counts["tokens"]
    results = _results(pipeline) if with_student else {}
    return Summary(
        examples=examples.rows,
        held_out_examples=examples.counts["held_out_examples"],
        text_bytes=examples.counts["text_bytes"],
        dropped={f"{name}: {reason}": n for name, part in manifests.items() for reason, n in part.dropped.items()},
        teacher_tokens=teacher_tokens,
        student_tokens=manifests["student_tokens"].counts["tokens"],
        chunks=manifests["alignments"].counts["chunks"],
        aligned_share=manifests["alignments"].counts["aligned_bytes"] / examples.counts["text_bytes"],
        cache_bytes_a_teacher_token=sum(manifest.bytes for manifest in cached) / max(1, teacher_tokens),
        bits_per_byte=results.get("held_out_bits_per_byte"),
        initialization=results.get("initialization", {}),
        places={name: dataset.url for name, dataset in pipeline.caches.items()}
        | ({"student": pipeline.student.url} if with_student else {}),
    )


def _results(pipeline: Pipeline) -> Mapping[str, Any]:
    manifest = pipeline.student.manifest()
    return manifest.results if manifest else {}


def summary_rows(summary: Summary, seconds: Mapping[str, float]) -> list[tuple[str, str]]:
    """The table's rows: what, and how much. `seconds` is the time of each stage in this run."""
    rows = [
        ("examples", f"{summary.examples:,} ({summary.held_out_examples:,} held out), {summary.text_bytes:,} bytes"),
        *((f"left out, {reason}", f"{count:,}") for reason, count in summary.dropped.items()),
        ("tokens", f"teacher {summary.teacher_tokens:,}, student {summary.student_tokens:,}"),
        ("aligned chunks", f"{summary.chunks:,}"),
        ("bytes aligned", f"{summary.aligned_share:.2%}"),
        ("cache", f"{summary.cache_bytes_a_teacher_token:.2f} bytes a teacher token"),
    ]
    if summary.initialization:
        rows.append(("new embeddings", ", ".join(f"{count:,} {how}" for how, count in summary.initialization.items())))
    if bits := summary.bits_per_byte:
        names = ("teacher", "student_before", "student_after")
        rows += [(f"held-out bits per byte, {name.replace('_', ' ')}", f"{bits[name]:.4f}") for name in names]
    rows.append(("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())))
    return rows


def summary_table(summary: Summary, seconds: Mapping[str, float]) -> Table:
    """The rows for a terminal, and below them where the files are."""
    table = Table(Column(), Column(overflow="fold"), show_header=False, title="alm", title_justify="left")
    for what, value in summary_rows(summary, seconds):
        table.add_row(what, value)
    table.add_section()
    for what, url in summary.places.items():
        table.add_row(what.replace("_", " "), url)
    return table
