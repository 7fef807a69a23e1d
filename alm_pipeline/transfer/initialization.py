"""The initial embeddings of a new vocabulary, by one of several methods.

All methods copy the rows of tokens that both vocabularies have (special tokens by literal or role, others by their
bytes), and differ in the rows of the others. A row that a method cannot compose is made by FVT: the mean of the token's
pieces, or a draw.

The method `hypernetwork` composes as FVT does, and a network then replaces the rows of tokens with several pieces
(`predicted_rows`).

A new method is a name in `config.student.Method`, and an entry in `METHODS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alm_pipeline.config import Level, Method, StudentConfig
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork
from alm_pipeline.hypernetwork.networks.pieces import Pieces
from alm_pipeline.models.files import tokenizer_files
from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.transfer.composition import Composition
from alm_pipeline.transfer.focus import focus
from alm_pipeline.transfer.fvt import VocabularyMap, special_ids
from alm_pipeline.transfer.omp import omp
from alm_pipeline.vocabulary.byte_view import ByteView, check_vocabulary, tokens_by_spelling
from storage.errors import UserError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Initialization:
    """How new embeddings are made."""

    method: Method = "fvt"
    donor: ModelReference | None = None
    """the model that the target's tokens come from, for methods that need one"""
    terms: int = 8
    """the number of shared tokens per new one, for the method omp"""
    level: Level = "none"
    """of the new tokens; whoever makes the embeddings sets it afterward, on texts"""
    hypernetwork: Hypernetwork | None = None
    """for the method of that name"""

    @classmethod
    def of(cls, student: StudentConfig, *, trust_remote_code: bool = False) -> "Initialization":
        """Return a student's initialization.

        Raises UserError if the method needs a donor and there is none, or if its hypernetwork can't be loaded.
        """
        tokenizer = student.tokenizer if isinstance(student.tokenizer, str) else None
        donor = find_donor(student.initialization, student.donor, tokenizer)
        reference = ModelReference(donor, trust_remote_code) if donor else None
        network = Hypernetwork.load(student.hypernetwork) if student.hypernetwork else None
        return cls(student.initialization, reference, student.omp_terms, student.level, network)

    def require_source(self, source: ModelReference) -> None:
        """Raise UserError if the hypernetwork, if there is one, was trained for another model."""
        if self.hypernetwork:
            self.hypernetwork.require_source(source)

    def identity(self) -> dict[str, Any]:
        """Return what decides the embeddings, besides source, target and seed."""
        level = {} if self.level == "none" else {"level": self.level}
        if self.hypernetwork:
            return {"method": self.method, "hypernetwork": self.hypernetwork.identity, **level}
        if not METHODS[self.method].needs_donor or self.donor is None:
            return {"method": self.method, **level}
        donor = {"model": self.donor.identity, "tokenizer": self.donor.tokenizer.identity}
        return {"method": self.method, "donor": donor, "terms": self.terms, **level}

    def compositions(self, mapping: VocabularyMap, tables: int) -> list[Composition]:
        """Compose each of the model's tables: the input embedding and, if it is not tied, the output embedding."""
        return METHODS[self.method].compose(self, mapping, tables)


class PredictedRows(NamedTuple):
    """The rows of the tokens that a hypernetwork predicts."""

    ids: Ints
    """[T] the target's tokens"""
    tables: list[Tensor]
    """for each table its rows: [T, W], or [T] of a bias; float32"""


def predicted_rows(initialization: Initialization, mapping: VocabularyMap, tables: Sequence[Tensor]) -> PredictedRows:
    """Return what the hypernetwork predicts for the model's tables: a row of each token with several pieces.

    Raises UserError if it was trained for tables of other widths.
    """
    ids = np.flatnonzero([len(pieces) > 1 for pieces in mapping.pieces])
    if initialization.hypernetwork is None or not len(ids):
        return PredictedRows(np.zeros(0, np.int64), [])
    pieces = Pieces.of([mapping.pieces[id_] for id_ in ids.tolist()], tables[0].device)
    rows = initialization.hypernetwork.rows(tables, pieces, mapping.source.size)
    return PredictedRows(ids, [row.reshape(-1, *table.shape[1:]) for row, table in zip(rows, tables, strict=True)])


def find_donor(method: Method, donor: str | None, tokenizer: str | None) -> str | None:
    """Return the donor, or else the model in the tokenizer's folder, if the method needs one.

    Raises UserError if the method needs one and there is none.
    """
    if not METHODS[method].needs_donor or donor:
        return donor
    if tokenizer is None or not (tokenizer_files(tokenizer) / "config.json").is_file():
        raise UserError(
            f"initialization {method}: {tokenizer or 'the tokenizer'} has no model beside it, and {method} needs the "
            "embeddings of the model that uses this tokenizer: name that model as the donor (student.donor, --donor), "
            "or use the initialization fvt or focus"
        )
    return tokenizer


def _by_spelling(mapping: VocabularyMap) -> Composition:
    target = mapping.target
    shared = np.flatnonzero(mapping.copied & ~target.special)
    new = np.flatnonzero(~mapping.copied & ~target.special)
    if not len(new):
        return mapping.means()
    rows = focus([target.spelling[id_] for id_ in new], [target.spelling[id_] for id_ in shared])
    sources = _first_pieces(mapping, shared)[rows.ids]
    cuts = rows.starts[1:-1]
    return _with_rows(mapping, new, np.split(sources, cuts), np.split(rows.weights, cuts))


def _first_pieces(mapping: VocabularyMap, ids: Ints) -> Ints:
    return np.array([mapping.pieces[id_][0] for id_ in ids], np.int64)


def _with_rows(
    mapping: VocabularyMap, new: Ints, ids: Sequence[Ints], weights: Sequence[npt.NDArray[np.float64]]
) -> Composition:
    """Return FVT's composition, with other terms for those of the rows `new` that have any."""
    rows: list[Sequence[int] | Ints] = list(mapping.pieces)
    shares: list[Sequence[float] | npt.NDArray[np.float64]] = [
        (1 / len(pieces),) * len(pieces) if pieces else () for pieces in mapping.pieces
    ]
    for row, row_ids, row_weights in zip(new.tolist(), ids, weights, strict=True):
        if len(row_ids):
            rows[row], shares[row] = row_ids, row_weights
    return Composition.of(rows, shares, mapping.copied)


class Donor(NamedTuple):
    """The embeddings of the model that the target's tokens come from."""

    tables: list[Tensor]
    """the counterpart of each of the source's tables"""
    ids: Ints
    """[V] the donor's row of each target token, -1 if it has none"""

    @classmethod
    def load(cls, donor: ModelReference, mapping: VocabularyMap, tables: int) -> "Donor":
        """Load the donor's embeddings. Raises UserError as `donor_ids` does."""
        model = donor.load(donor.weights_dtype)
        ids = donor_ids(donor, mapping, embedding_rows(model))
        layers = [model.get_input_embeddings(), model.get_output_embeddings()][:tables]
        return cls([layer.get_parameter("weight").detach() for layer in layers], ids)

    def compositions(self, mapping: VocabularyMap, terms: int) -> list[Composition]:
        """OMP: compose each new token of `terms` shared ones, separately for every table."""
        ordinary = (self.ids >= 0) & ~mapping.target.special
        shared = np.flatnonzero(mapping.copied & ordinary)
        new = np.flatnonzero(~mapping.copied & (self.ids >= 0))
        if not len(shared) or not len(new):
            return [mapping.means()] * len(self.tables)
        sources = _first_pieces(mapping, shared)
        compositions = []
        for table_SD in self.tables:
            atoms, weights = omp(table_SD[self.ids[new]], table_SD[self.ids[shared]], terms)
            compositions.append(_with_rows(mapping, new, list(sources[atoms]), list(weights)))
        return compositions


def donor_ids(donor: ModelReference, mapping: VocabularyMap, rows: int) -> Ints:
    """[V] the donor's id of each target token, -1 if it has none; `rows` are those of its embedding.

    Raises UserError if the tokenizer is not the donor's, or lacks a token that has to be composed.
    """
    check_vocabulary(donor.tokenizer.view, rows, donor.name)
    ids = _same_tokens(donor.tokenizer, mapping.target)
    ids[ids >= rows] = -1
    missing = (ids < 0) & ~mapping.copied & ~mapping.target.special & (mapping.target.lengths > 0)
    if missing.any():
        raise UserError(
            f"donor {donor.name}: its tokenizer lacks {int(missing.sum()):,} of the target's new tokens, such as "
            f"{mapping.target.spelling[int(np.flatnonzero(missing)[0])]!r}: name the model that has the target's "
            "tokenizer, or use the initialization fvt"
        )
    return ids


def _same_tokens(tokenizer: LoadedTokenizer, target: ByteView) -> Ints:
    """[V] the id of the same token: special tokens by literal, others by bytes; -1 if there is none."""
    ordinary, special = tokens_by_spelling(tokenizer.view), special_ids(tokenizer.fast)
    ids = [
        special.get(spelling.decode(), -1) if target.special[id_] else ordinary.get(spelling, -1) if spelling else -1
        for id_, spelling in enumerate(target.spelling)
    ]
    return np.array(ids, np.int64)


def _omp(initialization: Initialization, mapping: VocabularyMap, tables: int) -> list[Composition]:
    assert initialization.donor is not None
    donor = Donor.load(initialization.donor, mapping, tables)
    return donor.compositions(mapping, initialization.terms)


@dataclass(frozen=True)
class MethodRule:
    """What a method needs, and how it composes a number of tables."""

    compose: Callable[[Initialization, VocabularyMap, int], list[Composition]]
    needs_donor: bool = False
    """whether it looks at the model that the target's tokens come from"""


METHODS: dict[Method, MethodRule] = {
    "fvt": MethodRule(lambda _, mapping, tables: [mapping.means()] * tables),
    "mean": MethodRule(lambda _, mapping, tables: [mapping.copies("mean")] * tables),
    "random": MethodRule(lambda _, mapping, tables: [mapping.copies("draw")] * tables),
    "focus": MethodRule(lambda _, mapping, tables: [_by_spelling(mapping)] * tables),
    "omp": MethodRule(_omp, needs_donor=True),
    # the rows that it does not predict; see `predicted_rows`
    "hypernetwork": MethodRule(lambda _, mapping, tables: [mapping.means()] * tables),
}
