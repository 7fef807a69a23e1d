"""How the data went from the corpus to the student, with counts, and what was left out on the way and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alm_pipeline.alignment.table import visibility_rows
from alm_pipeline.inspection.head import meaning_of
from alm_pipeline.naming.differences import value_text
from alm_pipeline.student_report.stored import ROLES, ReportedStudent, mapping, number
from storage.dataset import Manifest
from storage.printed.shares import percent


@dataclass(frozen=True)
class Step:
    """A box of the flow: what there is, how much, and more about it."""

    title: str
    amount: str
    notes: list[str]
    follows: bool = True
    """whether it was made from what is before it"""


def data_flows(students: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    """Return a flow for each set of datasets, with the students that were made from it."""
    groups: dict[tuple[str, ...], list[ReportedStudent]] = {}
    for student in students:
        groups.setdefault(_datasets_key(student), []).append(student)
    flows = [
        {"students": [student.name for student in group], "steps": list(_steps(group))} for group in groups.values()
    ]
    return {"flows": flows, "dropped": list(_dropped(students))}


def _datasets_key(student: ReportedStudent) -> tuple[str, ...]:
    roles = [f"{prefix}{role}" for prefix in student.sources for role in ROLES]
    return tuple(student.datasets[role].key if role in student.datasets else "" for role in roles)


def _steps(group: Sequence[ReportedStudent]) -> Iterator[Step]:
    student = group[0]
    for number_of_source, (prefix, corpus) in enumerate(student.sources.items()):
        yield from _source_steps(student, prefix, corpus, follows=number_of_source == 0)
    for number_of_group, each in enumerate(group):
        yield _student(each, follows=number_of_group == 0 and len(student.sources) == 1)


def _source_steps(student: ReportedStudent, prefix: str, corpus: Mapping[str, Any], *, follows: bool) -> Iterator[Step]:
    """Yield the steps of a corpus, or of a source of a mixture, whose roles begin with `prefix`."""
    yield replace(_corpus(corpus, student.results), follows=follows)
    makers = {"examples": _examples, "alignments": _alignments}
    for role in ROLES:
        manifest, examples = student.dataset(f"{prefix}{role}"), student.dataset(f"{prefix}examples")
        if manifest is None:
            yield Step(role.replace("_", " "), "–", ["no longer stored"])
        elif role in makers:
            yield makers[role](examples, manifest)
        elif role == "scores":
            yield _scores(student.teacher_of(corpus), manifest)
        else:
            yield _tokens(examples, role, manifest)


def _corpus(corpus: Mapping[str, Any], results: Mapping[str, Any]) -> Step:
    source = mapping(corpus.get("source"))
    places = source.get("urls") or source.get("name") or source.get("kind") or ""
    sample, name = number(corpus.get("sample")), str(corpus.get("name") or "?")
    notes = [value if isinstance(value, str) else ", ".join(map(str, value)) for value in [places] if value]
    notes += [f"a sample of {sample:.2%}"] if sample is not None and sample < 1 else []
    if not (of_mixture := mapping(mapping(results.get("sources")).get(name))):
        return Step("corpus", name, notes)
    share, trained, epochs = (number(of_mixture.get(field)) or 0 for field in ("share", "examples", "epochs"))
    notes += [f"{share:.1%} of the training: {trained:,.0f} examples, {epochs:,.0f} epoch{'s'[: epochs != 1]}"]
    notes += [f"{what} {text}" for what, text in _source_measures(of_mixture)]
    return Step("source", name, notes)


def _source_measures(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for what, field in (("bits per byte", "bits_per_byte"), ("KL per word", "word_kl")):
        before, after = (number(mapping(source.get(field)).get(f"student_{when}")) for when in ("before", "after"))
        if before is not None and after is not None:
            yield what, f"{before:.4f} → {after:.4f}"


def _examples(_: Manifest | None, manifest: Manifest) -> Step:
    counts = manifest.counts
    notes = [f"{counts.get('text_bytes', 0):,} bytes", f"{counts.get('held_out_examples', 0):,} held out"]
    notes += [f"{counts['cut_examples']:,} cut at their limit"] if counts.get("cut_examples") else []
    return Step("examples", f"{manifest.rows:,}", [*notes, *_lost(manifest)])


def _tokens(examples: Manifest | None, role: str, manifest: Manifest) -> Step:
    tokens = manifest.counts.get("tokens", 0)
    size = examples.counts.get("text_bytes", 0) if examples else 0
    notes = [f"{size / tokens:.2f} bytes per token"] if tokens and size else []
    return Step(role.replace("_", " "), f"{tokens:,}", [*notes, *_lost(manifest)])


def _alignments(examples: Manifest | None, manifest: Manifest) -> Step:
    counts = manifest.counts
    size = examples.counts.get("text_bytes", 0) if examples else 0
    notes = [f"{percent(counts.get('aligned_bytes', 0), size)} of the bytes aligned"] if size else []
    notes += [f"{who} {text}" for who, text in visibility_rows(counts, size)] if size else []
    return Step("chunks", f"{counts.get('chunks', 0):,}", [*notes, *_lost(manifest)])


def _scores(teacher: Any, manifest: Manifest) -> Step:
    tokens = manifest.counts.get("tokens", 0)
    notes = [f"of {value_text(teacher)}"]
    notes += [f"{manifest.bytes / tokens:.2f} bytes per token"] if tokens else []
    return Step("teacher's scores", f"{tokens:,}", [*notes, *_lost(manifest)])


def _student(student: ReportedStudent, *, follows: bool) -> Step:
    train = mapping(student.configuration.get("train"))
    steps, batch = number(train.get("steps")), number(train.get("batch_tokens"))
    notes = [f"up to {batch:,.0f} tokens per step"] if batch else []
    initialization = mapping(student.results.get("initialization"))
    notes += (
        [f"new embeddings: {', '.join(f'{n:,} {how}' for how, n in initialization.items())}"] if initialization else []
    )
    return Step(f"student {student.name}", f"{steps:,.0f} steps" if steps else "trained", notes, follows)


def _lost(manifest: Manifest) -> list[str]:
    return [f"{sum(manifest.dropped.values()):,} left out"] if manifest.dropped else []


def _dropped(students: Sequence[ReportedStudent]) -> Iterator[dict[str, Any]]:
    """Yield a row for each dataset and reason; datasets that students share once."""
    seen = set()
    for student in students:
        for role, entry in student.datasets.items():
            manifest = student.dataset(role)
            if manifest is None or entry.key in seen:
                continue
            seen.add(entry.key)
            for reason, count in manifest.dropped.items():
                where = role.replace("_", " ")
                yield {
                    "where": where,
                    "name": entry.name,
                    "reason": reason,
                    "meaning": meaning_of(reason),
                    "count": count,
                }
