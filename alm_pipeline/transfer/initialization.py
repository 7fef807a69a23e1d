"""The initial embeddings of a new vocabulary, by one of several methods.

All copy what is the same in both vocabularies (special tokens by literal or role, others by their bytes); they differ
in the rest. Where a method has nothing to say of a token, FVT does: the mean of its pieces, or a draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alm_pipeline.config import Method, StudentConfig
from alm_pipeline.models.files import tokenizer_files
from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.transfer.composition import Composition
from alm_pipeline.transfer.focus import focus
from alm_pipeline.transfer.fvt import VocabularyMap
from alm_pipeline.transfer.omp import omp
from alm_pipeline.vocabulary.byte_view import ByteView, check_vocabulary, tokens_by_spelling
from storage.errors import UserError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Initialization:
    """How new embeddings are made."""

    method: Method = "fvt"
    donor: ModelReference | None = None
    """the model that the target's tokens come from; of the method omp"""
    terms: int = 8
    """shared tokens per new one; of the method omp"""

    @classmethod
    def of(cls, student: StudentConfig, *, trust_remote_code: bool = False) -> "Initialization":
        """A student's. Raises UserError for the method omp without a donor."""
        tokenizer = student.tokenizer if isinstance(student.tokenizer, str) else None
        donor = find_donor(student.initialization, student.donor, tokenizer)
        reference = ModelReference(donor, trust_remote_code) if donor else None
        return cls(student.initialization, reference, student.omp_terms)

    def identity(self) -> dict[str, Any]:
        """What decides the embeddings, beside source, target and seed."""
        if self.method != "omp" or self.donor is None:
            return {"method": self.method}
        donor = {"model": self.donor.identity, "tokenizer": self.donor.tokenizer.identity}
        return {"method": self.method, "donor": donor, "terms": self.terms}

    def compositions(self, mapping: VocabularyMap, tables: int) -> list[Composition]:
        """What makes up each of the model's tables: the input embedding and, where it is not tied, the output's."""
        match self.method:
            case "fvt":
                return [mapping.means()] * tables
            case "mean":
                return [mapping.copies("mean")] * tables
            case "random":
                return [mapping.copies("draw")] * tables
            case "focus":
                return [_by_spelling(mapping)] * tables
            case "omp":
                assert self.donor is not None
                donor = Donor.load(self.donor, mapping, tables)
                return donor.compositions(mapping, self.terms)


def find_donor(method: Method, donor: str | None, tokenizer: str | None) -> str | None:
    """The donor by name, or else the model beside the tokenizer; None where the method asks for none.

    Raises UserError where it asks for one and there is none.
    """
    if method != "omp" or donor:
        return donor
    if tokenizer is None or not (tokenizer_files(tokenizer) / "config.json").is_file():
        raise UserError(
            f"initialization omp: {tokenizer or 'the tokenizer'} comes without a model, and OMP looks at the "
            "embeddings of the model whose tokens these are: name it as the donor (student.donor, --donor), or use "
            "the initialization fvt or focus"
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
    """FVT with other terms for the rows `new`, where there are any."""
    rows: list[Sequence[int] | Ints] = list(mapping.pieces)
    shares: list[Sequence[float] | npt.NDArray[np.float64]] = [
        (1 / len(own),) * len(own) if own else () for own in rows
    ]
    for row, own, share in zip(new.tolist(), ids, weights, strict=True):
        if len(own):
            rows[row], shares[row] = own, share
    return Composition.of(rows, shares, mapping.copied)


class Donor(NamedTuple):
    """The embeddings of the model that the target's tokens come from."""

    tables: list[Tensor]
    """of the source's tables each its counterpart"""
    ids: Ints
    """[V] the donor's row of each target token, -1 where it has none"""

    @classmethod
    def load(cls, donor: ModelReference, mapping: VocabularyMap, tables: int) -> "Donor":
        """Raises UserError when it lacks a token that is to be made."""
        ids = _donor_ids(donor.tokenizer, mapping.target)
        missing = (ids < 0) & ~mapping.copied & ~mapping.target.special & (mapping.target.lengths > 0)
        if missing.any():
            raise UserError(
                f"donor {donor.name}: its tokenizer lacks {int(missing.sum()):,} of the target's new tokens, such as "
                f"{mapping.target.spelling[int(np.flatnonzero(missing)[0])]!r}: name the model that has the target's "
                "tokenizer, or use the initialization fvt"
            )
        model = donor.load(donor.weights_dtype)
        check_vocabulary(donor.tokenizer.view, embedding_rows(model), donor.name)
        layers = [model.get_input_embeddings(), model.get_output_embeddings()][:tables]
        return cls([layer.get_parameter("weight").detach() for layer in layers], ids)

    def compositions(self, mapping: VocabularyMap, terms: int) -> list[Composition]:
        """OMP: each new token of as many shared ones, for every table of its own."""
        ordinary = (self.ids >= 0) & ~mapping.target.special
        shared = np.flatnonzero(mapping.copied & ordinary)
        new = np.flatnonzero(~mapping.copied & (self.ids >= 0))
        if not len(shared) or not len(new):
            return [mapping.means()] * len(self.tables)
        sources = _first_pieces(mapping, shared)
        made = []
        for table_SD in self.tables:
            found, weights = omp(table_SD[self.ids[new]], table_SD[self.ids[shared]], terms)
            made.append(_with_rows(mapping, new, list(sources[found]), list(weights)))
        return made


def _donor_ids(tokenizer: LoadedTokenizer, target: ByteView) -> Ints:
    """The same token's id: of special ones by literal, of others by bytes."""
    ordinary, special = tokens_by_spelling(tokenizer.view), tokenizer.fast.get_added_vocab()
    found = [
        special.get(spelling.decode(), -1) if target.special[id_] else ordinary.get(spelling, -1) if spelling else -1
        for id_, spelling in enumerate(target.spelling)
    ]
    return np.array(found, np.int64)
