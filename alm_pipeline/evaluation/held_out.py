"""The held-out examples of a distillation, read once: each shard of the caches is opened a single time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.conversations.sections import REASONING, TOOL_CALLS
from alm_pipeline.evaluation.bits_per_byte import (
    NO_PREDICTION,
    TextTokens,
    bits_and_bytes,
    bits_per_byte,
    standard_error,
)
from alm_pipeline.evaluation.words import Distance, Words
from alm_pipeline.scoring.finite import check_stored_scores
from alm_pipeline.scoring.scorer import Scorer, TokenScores
from storage.columns import flatten_filled, flatten_lists, list_rows
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError
from storage.schemas import COMPLETION, TokenKind

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "examples": ("split",),
    "teacher_tokens": ("token_ids", "byte_lengths", "kinds", "turns", "roles"),
    "student_tokens": ("token_ids", "byte_lengths", "kinds", "turns", "roles"),
    "alignments": ("teacher_tokens", "student_tokens", "kinds", "ends", "assistant"),
    "scores": ("logprobs", "boundary_logprobs"),
}
_TOP = {"alignments": ("byte_lengths",), "scores": ("top_ids", "top_logprobs")}
"""what next tokens are compared with, besides"""
_SIDES = ("teacher_tokens", "student_tokens")
_SEED = 0
_PIECE = re.compile(r"#\d+$")
"""of a document that was cut into several examples, in the examples' ids"""

Tables = Mapping[str, pa.Table]
"""Tables by role, with the same examples in the same order."""


@dataclass(frozen=True)
class Measured:
    """Bits per byte, and their standard error; None if they are of a single document."""

    bits_per_byte: float
    standard_error: float | None
    distance: Distance | None = None
    """to the teacher, per word; None for the teacher itself, and without words or boundary tokens"""


class DocumentSums(NamedTuple):
    """What measures are ratios of, for each of D documents."""

    bits: npt.NDArray[np.float64]
    """[D] of the tokens that have a prediction"""
    bytes: npt.NDArray[np.float64]
    """[D] that these tokens cover"""
    kl: npt.NDArray[np.float64] | None = None
    """[D] nats, over the document's words; None without words or boundary tokens, and of the teacher"""
    words: npt.NDArray[np.float64] | None = None
    """[D]"""
    log_ratios: npt.NDArray[np.float64] | None = None
    """[D] nats, as `WordSums`; None as `kl`"""


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples that both sides could tokenize."""

    student: TextTokens
    """the student's tokens of all of them"""
    teacher: Measured
    """over all of them, from the teacher's scores"""
    words: Words
    """of all of them"""
    documents: npt.NDArray[np.int64]
    """[examples] the number of each one's document, from 0"""
    document_names: list[str]
    """[D] the id of each document"""
    teacher_sums: DocumentSums
    drawn: Tables
    """the columns `COLUMNS` of the examples that are evaluated on while the student is trained"""
    is_all: bool
    """whether `drawn` has all examples"""

    @classmethod
    def read(
        cls, caches: Mapping[str, Dataset], at_most: int | None = None, *, top: bool = False, everything: bool = False
    ) -> "HeldOut":
        """Read all held-out examples, and draw `at_most` of them, the same ones every time.

        With `top`, the tables also have the teacher's likeliest tokens, and what these are compared by. With
        `everything`, all examples count as held out: of a corpus that nothing was trained on. `caches` are the datasets
        by role, as `Pipeline.caches`. Raises UserError when nothing is held out, when nothing held out has a
        prediction, or when a score is not finite.
        """
        shards = _shards_with_held_out(caches, everything=everything)
        if not shards:
            raise _nothing(caches)
        columns = {role: (*names, *(_TOP.get(role, ()) if top else ())) for role, names in COLUMNS.items()}
        parts = [_held_out_rows(_read(caches, shard, columns), everything=everything) for shard in shards]
        tables = {role: pa.concat_tables([part[role] for part in parts]) for role in COLUMNS}
        total = tables["examples"].num_rows
        if not total:
            raise _nothing(caches)
        is_all = at_most is None or at_most >= total
        drawn = tables if is_all else _draw(tables, total, at_most or 0)
        documents, names = _documents(tables)
        teacher, teacher_sums = _measure_teacher(tables, documents)
        tokens, words = _student_tokens(tables), _words(tables)
        return cls(tokens, teacher, words, documents, names, teacher_sums, drawn, is_all)

    @property
    def teacher_bits_per_byte(self) -> float:
        """The teacher's, over all examples."""
        return self.teacher.bits_per_byte

    @property
    def document_count(self) -> int:
        """The number of documents that the examples are from."""
        return len(self.document_names)

    def measure_student(self, student: Scorer, title: str) -> Measured:
        """Score all examples; `title` is the name of the progress bar."""
        scores = self.student.score(student, title)
        measured = _measure(self._of_student(scores))
        return replace(measured, distance=self.words.distance(scores, self.documents))

    def student_sums(self, student: Scorer, title: str) -> DocumentSums:
        """Score all examples, and return what the student's measures are ratios of, by document."""
        scores = self.student.score(student, title)
        sums = DocumentSums(*bits_and_bytes(*self._of_student(scores), len(self.document_names)))
        words = self.words.sums(scores, self.documents)
        return sums._replace(kl=words.kl, words=words.words, log_ratios=words.log_ratios) if words else sums

    def _of_student(self, scores: Sequence[TokenScores]) -> "_Predictions":
        documents = np.repeat(self.documents, list(map(len, self.student.ids)))
        logprobs = np.concatenate([row.logprobs for row in scores])
        return _Predictions(logprobs, self.student.byte_lengths, self.student.kinds, documents)

    def __len__(self) -> int:
        """The number of examples that are drawn."""
        return int(self.drawn["examples"].num_rows)

    @property
    def drawn_student(self) -> TextTokens:
        """The student's tokens of the examples that are drawn."""
        return self.student if self.is_all else _student_tokens(self.drawn)

    @property
    def drawn_words(self) -> Words:
        """The words of the examples that are drawn."""
        return self.words if self.is_all else _words(self.drawn)

    @property
    def has_conversations(self) -> bool:
        """Whether the examples are conversations: those have turns with roles."""
        return bool(len(self.drawn["student_tokens"]) and len(self.drawn["student_tokens"]["roles"][0]))

    def column(self, role: str, name: str) -> list[npt.NDArray[np.generic]]:
        """Return a list column of the drawn examples, one array per example."""
        return list_rows(self.drawn[role][name])


class HeldOutCheck:
    """Whether something is held out and has a prediction on both sides, by shards that are seen one by one."""

    COLUMNS: ClassVar = {role: names for role, names in COLUMNS.items() if role != "scores"}

    def __init__(self) -> None:
        self._predicted, self._rows = dict.fromkeys(_SIDES, False), 0

    @property
    def is_passed(self) -> bool:
        return all(self._predicted.values())

    def see(self, tables: Tables) -> None:
        """Look at a shard's columns `COLUMNS`."""
        held_out = _held_out_rows({role: tables[role] for role in self.COLUMNS})
        self._rows += held_out["examples"].num_rows
        self._predicted |= {side: self._predicted[side] or _has_predictions(held_out[side]) for side in _SIDES}

    def require(self, caches: Mapping[str, Dataset]) -> None:
        """Raise UserError, as `HeldOut.read` does, if nothing is held out or has a prediction in all shards."""
        if not self.is_passed:
            raise UserError(NO_PREDICTION) if self._rows else _nothing(caches)


def _shards_with_held_out(caches: Mapping[str, Dataset], *, everything: bool) -> list[int]:
    """Return the shards that may have held-out examples: where a tiny share is held out, few have any."""
    records = caches["examples"].complete_manifest().shards
    return [shard for shard, record in enumerate(records) if everything or record.counts.get("held_out_examples", 1)]


def _nothing(caches: Mapping[str, Dataset]) -> UserError:
    return UserError(
        f"{caches['examples'].url}: no example is held out, so nothing can be evaluated: "
        "raise corpus.held_out, or use a larger corpus"
    )


def _has_predictions(table: pa.Table) -> bool:
    """Whether a token after the first of its example covers a byte that is measured."""
    if not table.num_rows:
        return False
    lengths, kinds = _bytes_and_kinds(table)
    _, offsets = flatten_lists(table["kinds"])
    counted = (kinds == TokenKind.CONTENT) & (lengths > 0)
    counted[offsets[:-1][np.diff(offsets) > 0]] = False
    return bool(counted.any())


def _read(caches: Mapping[str, Dataset], shard: int, columns: Mapping[str, tuple[str, ...]]) -> Tables:
    tables = read_aligned(caches, shard, dict(columns))
    check_stored_scores(tables, caches["scores"], shard)
    return tables


def _held_out_rows(tables: Tables, *, everything: bool = False) -> dict[str, pa.Table]:
    is_held_out = pc.equal(tables["examples"]["split"], "held_out")
    is_aligned = pc.greater(pc.list_value_length(tables["alignments"]["kinds"]), 0)
    mask = is_aligned if everything else pc.and_(is_held_out, is_aligned)
    return {role: table.filter(mask) for role, table in tables.items()}


def _draw(tables: Tables, total: int, count: int) -> dict[str, pa.Table]:
    rows = np.sort(np.random.default_rng(_SEED).choice(total, count, replace=False))
    return {role: table.take(rows).combine_chunks() for role, table in tables.items()}


def _student_tokens(tables: Tables) -> TextTokens:
    ids = list_rows(tables["student_tokens"]["token_ids"])
    return TextTokens(ids, *_bytes_and_kinds(tables["student_tokens"]))


def _documents(tables: Tables) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the number of each example's document, and the documents' ids by number."""
    names = [_PIECE.sub("", id_) for id_ in tables["examples"]["id"].to_pylist()]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64), list(numbers)


class _Predictions(NamedTuple):
    """A side's tokens of all examples, one after the other."""

    logprobs: npt.NDArray[np.float32]
    byte_lengths: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]
    documents: npt.NDArray[np.int64]


def _measure_teacher(tables: Tables, documents: npt.NDArray[np.int64]) -> tuple[Measured, DocumentSums]:
    rows = list_rows(tables["scores"]["logprobs"])
    tokens = np.repeat(documents, list(map(len, rows)))
    predictions = _Predictions(np.concatenate(rows), *_bytes_and_kinds(tables["teacher_tokens"]), tokens)
    return _measure(predictions), DocumentSums(*bits_and_bytes(*predictions, int(documents.max()) + 1))


def _measure(predictions: _Predictions) -> Measured:
    return Measured(bits_per_byte(*predictions[:3]), standard_error(*predictions))


def _words(tables: Tables) -> Words:
    """Return the words that are measured: of prompts with completions, the completions' alone."""
    roles, _ = flatten_lists(tables["student_tokens"]["roles"])
    return Words.of(tables, assistant_only=bool((roles == COMPLETION).any()))


def _bytes_and_kinds(table: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return the bytes and kinds [tokens] that are measured: of a prompt with a completion, the completion's alone."""
    lengths, kinds = (np.concatenate(list_rows(table[name])) for name in ("byte_lengths", "kinds"))
    roles, role_offsets = flatten_lists(table["roles"])
    if (roles == COMPLETION).any():
        is_completion = np.append(np.isin(roles, [COMPLETION, REASONING, TOOL_CALLS]), False)  # of no message, at -1
        _, offsets = flatten_lists(table["byte_lengths"])
        turns = flatten_filled(table["turns"], offsets, -1).astype(np.int64)
        places = np.where(turns < 0, -1, np.repeat(role_offsets[:-1], np.diff(offsets)) + turns)
        kinds = np.where(is_completion[places], kinds, np.uint8(TokenKind.TEMPLATE))
    return lengths, kinds
