"""The audit of a student or of caches: samples examples, computes byte-prefix sums, compares every chunk's target."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.audit.chunks import FORMS, Edges, FormChunks, chunks_of_form, targets
from alm_pipeline.audit.numbers import AuditedChunk, AuditReport, LargestCase, group_numbers, is_certain
from alm_pipeline.audit.places import TextPlaces, end_known
from alm_pipeline.audit.sources import AuditSource
from alm_pipeline.audit.stretches import ExactSide, SideExample
from alm_pipeline.config import Debias, Dtype
from alm_pipeline.exactness.branches import BranchModel
from alm_pipeline.exactness.sorted_vocabulary import SortedVocabulary
from alm_pipeline.models.loading import require_device
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.runtime.progress import track
from storage.columns import flatten_lists
from storage.dataset import read_aligned
from storage.errors import UserError

_COLUMNS: Mapping[str, Sequence[str]] = {
    "examples": ("split", "text"),
    "teacher_tokens": ("token_ids", "byte_lengths", "kinds", "uncovered_bytes"),
    "student_tokens": ("token_ids", "byte_lengths", "kinds", "uncovered_bytes"),
    "alignments": ("teacher_tokens", "student_tokens", "byte_lengths", "kinds", "ends", "assistant"),
    "scores": ("logprobs", "boundary_logprobs"),
}
_SIDES = ("teacher", "student")
_CONTEXT_BYTES = 40
"""that the largest cases show on either side"""
Tables = Mapping[str, pa.Table]


@dataclass(frozen=True)
class AuditSettings:
    """How much is looked at, and how exactly."""

    examples: int = 16
    tokens: int = 256
    """of each example, from its beginning, on each side"""
    seed: int = 0
    tolerance: float = 1e-3
    """what may be left out of a sum: at this share the exact value counts as certain"""
    budget: int = 1000
    """sequences off the canonical path per example and side"""
    dtype: Dtype = "float32"
    device: str | None = None
    largest: int = 10
    """cases to show"""


def audit_targets(sources: Sequence[AuditSource], settings: AuditSettings | None = None) -> list[AuditReport]:
    """Audit the chunks of some examples of each source, whose numbers are divided evenly.

    Raises UserError if a model can't be audited or no example of a source has a chunk.
    """
    settings = settings or AuditSettings()
    require_device(settings.device)
    share = replace(settings, examples=-(-settings.examples // len(sources)))
    return [_audit_source(source, share) for source in sources]


def _audit_source(source: AuditSource, settings: AuditSettings) -> AuditReport:
    ends = source.chunk_ends()
    examples = [_Example.of(tables, source, ends) for tables in _sampled(source, settings)]
    models = {"teacher": source.teacher} | ({"student": source.student} if source.student else {})
    sides = {
        side: _Side.measured(side, model, source.tokenizers[f"{side}_tokens"], examples, settings)
        for side, model in models.items()
    }
    debias = source.objective.debias
    chunks = [chunk for side in sides.values() for chunk in side.chunks]
    return AuditReport(
        url=source.url,
        source=source.name,
        teacher=source.teacher.name,
        student=source.student.name if source.student else None,
        tolerance=settings.tolerance,
        examples=len(examples),
        tokens={name: side.tokens for name, side in sides.items()},
        followed={name: side.followed for name, side in sides.items()},
        not_covered={name: side.not_covered[debias] for name, side in sides.items()},
        stored=_stored_differences(chunks, debias),
        debias=debias,
        numbers=group_numbers(chunks, settings.tolerance),
        largest=_largest(chunks, {example.id: example for example in examples}, debias, settings),
        chunks=chunks,
    )


def _sampled(source: AuditSource, settings: AuditSettings) -> Iterator[Tables]:
    """Yield the tables of single examples that have chunks, drawn at random. Raises UserError if there is none."""
    rows = [record.rows for record in source.datasets["alignments"].complete_manifest().shards]
    offsets = np.concatenate([[0], np.cumsum(rows)])
    order = np.random.default_rng(settings.seed).permutation(int(offsets[-1]))
    found = 0
    # a few more than asked for, since some have no chunk; all of a shard at once, since reading it takes the time
    for start in range(0, len(order), 2 * settings.examples):
        some = order[start : start + 2 * settings.examples]
        shards = np.searchsorted(offsets, some, side="right") - 1
        for shard in np.unique(shards).tolist():
            tables = read_aligned(source.datasets, shard, _COLUMNS)
            for row in (some[shards == shard] - offsets[shard]).tolist():
                example = {name: table.slice(row, 1) for name, table in tables.items()}
                if found < settings.examples and _is_usable(example):
                    found += 1
                    yield example
        if found == settings.examples:
            return
    if not found:
        raise UserError(f"{source.datasets['alignments'].url}: no example has chunks whose bytes all tokens cover")


def _is_usable(tables: Tables) -> bool:
    uncovered = sum(len(tables[f"{side}_tokens"]["uncovered_bytes"][0]) for side in _SIDES)
    return len(tables["alignments"]["kinds"][0]) > 0 and not uncovered


@dataclass(frozen=True)
class _Example:
    id: str
    text: TextPlaces
    edges: Edges
    sides: Mapping[str, SideExample]
    chunks: Mapping[Debias, FormChunks]

    @classmethod
    def of(cls, tables: Tables, source: AuditSource, ends: ChunkEnds | None) -> "_Example":
        text = TextPlaces(tables["examples"]["text"][0].as_py())
        chunks = {form: chunks_of_form(tables, source.objective, form, ends) for form in FORMS}
        sides = {side: _side_example(tables[f"{side}_tokens"]) for side in _SIDES}
        return cls(tables["examples"]["id"][0].as_py(), text, Edges.of(tables["alignments"]), sides, chunks)

    def bytes_of(self, form: Debias) -> npt.NDArray[np.int64]:
        """[K, 2] the first byte of each chunk, and one past its last."""
        chunks = self.chunks[form]
        return np.stack([self.edges.bytes[chunks.starts], self.edges.bytes[chunks.ends]], 1)


def _side_example(tokens: pa.Table) -> SideExample:
    ids, lengths, kinds = (flatten_lists(tokens[name])[0] for name in ("token_ids", "byte_lengths", "kinds"))
    return SideExample(ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), kinds)


@dataclass
class _Side:
    """One side's chunks, and what was done for them."""

    name: str
    chunks: list[AuditedChunk] = field(default_factory=list)
    tokens: int = 0
    followed: int = 0
    not_covered: dict[Debias, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))

    @classmethod
    def measured(
        cls,
        name: str,
        reference: ModelReference,
        tokenizer: LoadedTokenizer,
        examples: Sequence[_Example],
        settings: AuditSettings,
    ) -> "_Side":
        model = BranchModel(reference.load(settings.dtype, device=settings.device), tokenizer)
        vocabulary = SortedVocabulary.of(tokenizer.view, model.vocabulary)
        boundary_ids = tokenizer.boundary_ids[tokenizer.boundary_ids < model.vocabulary]
        side = cls(name)
        parts = [example.sides[name].first(settings.tokens) for example in examples]
        with track(f"audit {name}", sum(len(part.ids) for part in parts), "tokens") as advance:
            for example, part in zip(examples, parts, strict=True):
                branches = model.after(part.ids.tolist())
                places = np.unique(np.concatenate([example.bytes_of(form).ravel() for form in FORMS]))
                exact = ExactSide.of(
                    part,
                    example.text.content,
                    branches.canonical_rows,
                    branches,
                    vocabulary,
                    boundary_ids,
                    places,
                    settings.tolerance,
                    settings.budget,
                )
                side.add(example, exact)
                advance(len(part.ids))
        return side

    def add(self, example: _Example, exact: ExactSide) -> None:
        self.tokens += len(exact.example.ids)
        self.followed += sum(sums.followed for sums in exact.sums)
        tokens = getattr(example.edges, self.name)
        for form, chunks in example.chunks.items():
            found = targets(exact, tokens, chunks, form)
            flags = example.edges.flags[chunks.ends - 1]
            self.not_covered[form] += int((~found.is_covered).sum())
            for number in np.flatnonzero(found.is_covered).tolist():
                start, end = example.bytes_of(form)[number].tolist()
                self.chunks.append(
                    AuditedChunk(
                        side=self.name,
                        form=form,
                        example=example.id,
                        start=start,
                        end=end,
                        value=float(found.value[number]),
                        exact=float(found.exact[number]),
                        left_out=float(found.left_out[number]),
                        stored=float(chunks.stored[number]) if self.name == "teacher" else float("nan"),
                        groups={**example.text.groups(start, end), "known": end_known(flags[number])},
                    )
                )


def _stored_differences(chunks: Sequence[AuditedChunk], form: Debias) -> dict[str, float]:
    differences = [
        abs(chunk.stored - chunk.value) for chunk in chunks if chunk.side == "teacher" and chunk.form == form
    ]
    if not differences:
        return {}
    quantiles = np.quantile(differences, (0.5, 0.9, 0.99)).tolist()
    return dict(zip(("median", "p90", "p99"), quantiles, strict=True))


def _largest(
    chunks: Sequence[AuditedChunk], examples: Mapping[str, _Example], form: Debias, settings: AuditSettings
) -> list[LargestCase]:
    """Return the cases of the configured form that are furthest from their exact value, as many for each side."""
    cases = []
    for side in dict.fromkeys(chunk.side for chunk in chunks):
        certain = [
            chunk
            for chunk in chunks
            if chunk.side == side and chunk.form == form and is_certain(chunk, settings.tolerance)
        ]
        certain.sort(key=lambda chunk: -abs(chunk.error))
        cases += [_case(chunk, examples[chunk.example]) for chunk in certain[: settings.largest]]
    return cases


def _case(chunk: AuditedChunk, example: _Example) -> LargestCase:
    def text(start: int, end: int) -> str:
        return example.text.content[max(start, 0) : end].decode(errors="replace")

    tokens = {
        side: [
            text(start, end)
            for start, end in zip(tokens.ends[:-1].tolist(), tokens.ends[1:].tolist(), strict=True)
            if chunk.start <= start < end <= chunk.end
        ]
        for side, tokens in example.sides.items()
    }
    return LargestCase(
        side=chunk.side,
        form=chunk.form,
        example=chunk.example,
        start=chunk.start,
        end=chunk.end,
        before=text(chunk.start - _CONTEXT_BYTES, chunk.start),
        text=text(chunk.start, chunk.end),
        after=text(chunk.end, chunk.end + _CONTEXT_BYTES),
        teacher=tokens["teacher"],
        student=tokens["student"],
        value=chunk.value,
        exact=chunk.exact,
        error=chunk.error,
    )
