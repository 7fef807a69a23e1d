"""The summary of a run as a short table, read from the manifests alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Column, Table
from rich.text import Text

from alm_pipeline.alignment.table import visibility_rows
from alm_pipeline.evaluation.precision import bits_text, why_too_few
from alm_pipeline.naming.names import recorded_name, run_name
from alm_pipeline.tokenization.rows import UNREAD_ARGUMENT
from alm_pipeline.transfer.level.words import level_text
from storage.dataset import Manifest
from storage.printed.inert import one_line
from storage.printed.shares import percent

if TYPE_CHECKING:
    # with it come transformers and torch, which a summary that is known already does without
    from alm_pipeline.pipeline import Pipeline


class ContextUse(BaseModel):
    """How much of the student's context the examples use whose document goes on after them: the limit ended them.

    The last example of a document has what remained, which says nothing of the limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int
    """the student's, in tokens"""
    tokens: float
    """mean of these examples, with special tokens; where bytes are the limit, from their bytes"""
    max_bytes: int | None
    """`corpus.max_bytes`, if it ends the examples rather than the context; otherwise None"""

    def describe(self) -> str:
        """Return the share of the context, and the setting to raise if the context is not the limit."""
        share = f"mean {self.tokens / self.context:.0%} of the student's {self.context:,} tokens (cut texts)"
        return f"{share}; corpus.max_bytes, {self.max_bytes:,}, is reached first" if self.max_bytes else share


class SourceSummary(BaseModel):
    """The numbers of one source of a mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    share: float
    """of the examples that are trained on"""
    teacher: str
    examples: int
    held_out_examples: int
    text_bytes: int
    teacher_tokens: int
    student_tokens: int
    context_use: ContextUse | None = None
    trained_examples: int | None = None
    """None before the training"""
    epochs: int | None = None
    """how often it was begun: one that ends is read again, in another order"""
    bits_per_byte: dict[str, float] = Field(default_factory=dict)
    """as in `RunSummary`"""
    word_kl: dict[str, float] = Field(default_factory=dict)

    def describe(self) -> str:
        """Return the numbers in one line."""
        parts = [
            f"{percent(self.share, 1)} of the training, teacher {self.teacher}",
            f"{self.examples:,} examples ({self.held_out_examples:,} held out)",
            f"teacher {self.teacher_tokens:,} tokens, student {self.student_tokens:,}",
        ]
        if self.trained_examples is not None:
            parts.append(f"trained on {self.trained_examples:,} in {self.epochs} epoch{'s'[: self.epochs != 1]}")
        if bits := self.bits_per_byte:
            parts.append(
                f"bits per byte: teacher {bits['teacher']:.4f}, student {bits['student_before']:.4f} → "
                f"{bits['student_after']:.4f}"
            )
        if kl := self.word_kl:
            parts.append(f"KL per word {kl['student_before']:.4f} → {kl['student_after']:.4f}")
        return "; ".join(parts)


class RunSummary(BaseModel):
    """The numbers of a run. After a run that stopped at the teacher's scores, the student's are None or empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """chosen, or made of what the run changes in its recipe; a finished student keeps the one that it was made with"""
    examples: int
    held_out_examples: int
    text_bytes: int
    dropped: dict[str, int]
    """number of examples by dataset and reason, in a mixture by source, too"""
    teacher_tokens: int
    student_tokens: int
    context_use: ContextUse | None = None
    """None if nothing was cut, or the student has no limit"""
    chunks: int
    aligned_share: float | None
    """share of the text's bytes that are in aligned chunks; None if there are no bytes"""
    byte_counts: dict[str, int] = Field(default_factory=dict)
    """of the alignments: bytes by who shows them, such as `teacher_only_bytes`, and by role"""
    unread_arguments: dict[str, dict[str, int]] = Field(default_factory=dict)
    """by side: the number of conversations with each template argument that its template does not read"""
    cache_bytes_per_teacher_token: float
    """stored bytes of both sides' tokens, the alignments and the scores"""
    bits_per_byte: dict[str, float] | None
    """on held-out examples: the teacher's, and the student's before and after training"""
    word_kl: dict[str, float] = Field(default_factory=dict)
    """on held-out examples: the student's divergence from the teacher before and after training, nats per word"""
    standard_errors: dict[str, float | None]
    """of the teacher's bits per byte, the trained student's, and its KL per word; empty if they are not recorded"""
    held_out_documents: int
    """the documents that the bits per byte are measured on"""
    initialization: dict[str, int]
    """rows of the student's new embedding by origin; empty if it kept its tokenizer"""
    level: dict[str, float] = Field(default_factory=dict)
    """what the logits of its new tokens lost before training, as the student's manifest records it"""
    places: dict[str, str]
    """the URL of each dataset, and of the student"""
    sources: tuple[SourceSummary, ...] = ()
    """of a mixture; the other numbers are sums over them, and means by their shares of what is measured"""
    report: str | None = None
    """the URL of the page about the student; None if there is none"""

    @property
    def shown_places(self) -> dict[str, str]:
        """The URLs of all that the run has made, the page included."""
        return self.places | ({"report": self.report} if self.report else {})


def summarize(pipeline: "Pipeline", *, with_student: bool = True) -> RunSummary:
    """Gather the summary of a finished run. Raises UserError if a stage is not complete."""
    from alm_pipeline.student_report.page import stored_report

    caches = _Caches.of(pipeline)
    student = pipeline.student.manifest() if with_student else None
    results: Mapping[str, Any] = student.results if student else {}
    recorded = student.provenance.get("configuration") if student else None
    is_mixture = pipeline.config.is_mixture
    return RunSummary(
        name=recorded_name(recorded) if isinstance(recorded, Mapping) else run_name(pipeline.config),
        **caches.numbers(),
        **_numbers_of_student(results, caches.total("examples", "held_out_examples")),
        context_use=None if is_mixture else _context_use(pipeline, caches.by_role),
        places=caches.places | ({"student": pipeline.student.url} if with_student else {}),
        sources=_sources(pipeline, caches.of_sources, results) if is_mixture else (),
        report=stored_report(pipeline.student.url) if with_student else None,
    )


@dataclass(frozen=True)
class _Caches:
    """What the manifests of a run's datasets say."""

    of_sources: Mapping[str, Mapping[str, Manifest]]
    """by source, of which there is one unless it is a mixture, and role"""
    by_role: Mapping[str, Manifest]
    """of a mixture by `SOURCE: ROLE`"""
    places: dict[str, str]
    """URLs by the same names"""

    @classmethod
    def of(cls, pipeline: "Pipeline") -> "_Caches":
        """Raises UserError if a stage is not complete."""
        of_sources: dict[str, dict[str, Manifest]] = {}
        by_role: dict[str, Manifest] = {}
        places: dict[str, str] = {}
        for part in pipeline.parts:
            manifests = {role: dataset.complete_manifest() for role, dataset in part.caches.items()}
            prefix = f"{part.name}: " if pipeline.config.is_mixture else ""
            of_sources[part.name] = manifests
            by_role |= {prefix + role: manifest for role, manifest in manifests.items()}
            places |= {prefix + role: dataset.url for role, dataset in part.caches.items()}
        return cls(of_sources, by_role, places)

    def each(self, role: str) -> list[Manifest]:
        return [manifests[role] for manifests in self.of_sources.values()]

    def total(self, role: str, count: str) -> int:
        return sum(manifest.counts[count] for manifest in self.each(role))

    def numbers(self) -> dict[str, Any]:
        """Return those fields of `RunSummary` that the caches decide."""
        text_bytes, teacher_tokens = self.total("examples", "text_bytes"), self.total("teacher_tokens", "tokens")
        cached = sum(manifest.bytes for role in _CACHED for manifest in self.each(role))
        dropped = {
            f"{role}: {reason}": n for role, manifest in self.by_role.items() for reason, n in manifest.dropped.items()
        }
        sides = ("teacher", "student")
        return {
            "examples": sum(manifest.rows for manifest in self.each("examples")),
            "held_out_examples": self.total("examples", "held_out_examples"),
            "text_bytes": text_bytes,
            "dropped": dropped,
            "teacher_tokens": teacher_tokens,
            "student_tokens": self.total("student_tokens", "tokens"),
            "chunks": self.total("alignments", "chunks"),
            "aligned_share": _share(self.total("alignments", "aligned_bytes"), text_bytes),
            "byte_counts": _summed([_byte_counts(manifest) for manifest in self.each("alignments")]),
            "unread_arguments": {side: _summed(list(map(_unread, self.each(f"{side}_tokens")))) for side in sides},
            "cache_bytes_per_teacher_token": cached / max(1, teacher_tokens),
        }


_CACHED = ("teacher_tokens", "student_tokens", "alignments", "scores")


def _numbers_of_student(results: Mapping[str, Any], held_out: int) -> dict[str, Any]:
    """Return those fields of `RunSummary` that a student's manifest records; `held_out` examples were measured."""
    return {
        "bits_per_byte": results.get("held_out_bits_per_byte"),
        "word_kl": results.get("held_out_word_kl", {}),
        "standard_errors": results.get("held_out_standard_errors", {}),
        # earlier versions did not record the documents; the number of examples is an upper bound
        "held_out_documents": results.get("held_out_documents", held_out),
        "initialization": results.get("initialization", {}),
        "level": results.get("level", {}),
    }


def _sources(
    pipeline: "Pipeline", parts: Mapping[str, Mapping[str, Manifest]], results: Mapping[str, Any]
) -> tuple[SourceSummary, ...]:
    sources, total = pipeline.config.sources, sum(source.weight for source in pipeline.config.sources)
    found = []
    for part, source in zip(pipeline.parts, sources, strict=True):
        manifests, own = parts[part.name], results.get("sources", {}).get(part.name, {})
        examples = manifests["examples"]
        found.append(
            SourceSummary(
                name=part.name,
                share=source.weight / total,
                teacher=part.teacher.label,
                examples=examples.rows,
                held_out_examples=examples.counts["held_out_examples"],
                text_bytes=examples.counts["text_bytes"],
                teacher_tokens=manifests["teacher_tokens"].counts["tokens"],
                student_tokens=manifests["student_tokens"].counts["tokens"],
                context_use=_context_use(part, manifests),
                trained_examples=own.get("examples"),
                epochs=own.get("epochs"),
                bits_per_byte=own.get("bits_per_byte", {}),
                word_kl=own.get("word_kl", {}),
            )
        )
    return tuple(found)


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of counts by name."""
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _context_use(pipeline: "Pipeline", manifests: Mapping[str, Manifest]) -> ContextUse | None:
    counts, context = manifests["examples"].counts, pipeline.source.context_length
    if not counts.get("cut_examples") or not context:  # datasets of earlier versions lack the count
        return None
    mean_bytes = counts["cut_bytes"] / counts["cut_examples"]
    if "cut_tokens" in counts:
        tokens = counts["cut_tokens"] / counts["cut_examples"]
    else:
        tokens = mean_bytes * manifests["student_tokens"].counts["tokens"] / counts["text_bytes"]
    most = pipeline.config.texts.max_bytes if pipeline.cuts_by_tokens else pipeline.config.texts.byte_limit
    by_bytes = most is not None and mean_bytes / most > tokens / context
    return ContextUse(context=context, tokens=tokens, max_bytes=most if by_bytes else None)


def _unread(tokens: Manifest) -> dict[str, int]:
    counts = tokens.counts.items()
    return {name.removeprefix(UNREAD_ARGUMENT): n for name, n in counts if name.startswith(UNREAD_ARGUMENT)}


def _byte_counts(alignments: Manifest) -> dict[str, int]:
    return {name: count for name, count in alignments.counts.items() if "_bytes" in name or "_sections." in name}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def summary_rows(summary: RunSummary, seconds: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the table's rows, name and value. `seconds` is the time of each stage in this run; empty if none ran."""
    rows = [
        ("examples", f"{summary.examples:,} ({summary.held_out_examples:,} held out), {summary.text_bytes:,} bytes"),
        *((f"left out, {reason}", f"{count:,}") for reason, count in summary.dropped.items()),
        ("tokens", f"teacher {summary.teacher_tokens:,}, student {summary.student_tokens:,}"),
        *([("context used", summary.context_use.describe())] if summary.context_use else []),
        ("chunks", f"{summary.chunks:,}"),
        ("bytes aligned", "–" if summary.aligned_share is None else percent(summary.aligned_share, 1)),
        *visibility_rows(summary.byte_counts, summary.text_bytes),
        *_unread_rows(summary),
        ("cache", f"{summary.cache_bytes_per_teacher_token:.2f} bytes per teacher token"),
        *((f"source {source.name}", source.describe()) for source in summary.sources),
    ]
    if summary.initialization:
        rows.append(("new embeddings", ", ".join(f"{count:,} {how}" for how, count in summary.initialization.items())))
    if summary.level:
        rows.append(("level of new tokens", level_text(summary.level)))
    if bits := summary.bits_per_byte:
        rows += [(f"held-out bits per byte, {who.replace('_', ' ')}", text) for who, text in _bits_texts(summary, bits)]
    if word_kl := summary.word_kl:
        rows.append(
            ("KL per word from the teacher", _word_kl_text(word_kl, summary.standard_errors.get("student_word_kl")))
        )
    if seconds:
        rows.append(("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())))
    return rows


def _unread_rows(summary: RunSummary) -> Iterator[tuple[str, str]]:
    for side, names in summary.unread_arguments.items():
        if names:
            texts = [f"{name} of {count:,} conversations" for name, count in names.items()]
            yield f"not read by the {side}'s template", ", ".join(texts)


def _bits_texts(summary: RunSummary, bits: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for who in ("teacher", "student_before", "student_after"):
        error = summary.standard_errors.get(who)
        problem = why_too_few(summary.held_out_documents, bits[who], error) if who == "student_after" else ""
        yield who, bits_text(bits[who], error) + (f" ({problem})" if problem else "")


def _word_kl_text(word_kl: Mapping[str, float], error: float | None) -> str:
    after = bits_text(word_kl["student_after"], error)
    return f"{word_kl['student_before']:.4f} before, {after} after training (held out, nats)"


def summary_table(summary: RunSummary, seconds: Mapping[str, float]) -> Table:
    """Make a table for a terminal: the rows, and below them the places of the files."""
    table = Table(
        Column(),
        Column(overflow="fold"),
        show_header=False,
        title=Text(one_line(f"alm: {summary.name}")),
        title_justify="left",
    )
    for what, value in summary_rows(summary, seconds):
        table.add_row(Text(one_line(what)), Text(one_line(value)))
    table.add_section()
    for what, url in summary.shown_places.items():
        table.add_row(what.replace("_", " "), Text(one_line(url)))
    return table
