"""What a model's head needs to know of the tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.vocabulary.byte_view import check_vocabulary
from storage.errors import UserError


@dataclass(frozen=True)
class HeadVocabulary:
    """Which tokens exist, and which of them begin a word."""

    boundary_ids_K: Tensor
    """tokens that begin with white space, and special tokens"""
    rows: int | None = None
    """the ids that are tokens and have a row; the head's further rows are padding (None: it has no padding)"""

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: LoadedTokenizer) -> "HeadVocabulary":
        """Raises UserError when the tokenizer is not the model's. A token without a row is never predicted."""
        rows = embedding_rows(model)
        check_vocabulary(tokenizer.view, rows, tokenizer.name)
        boundary_ids = torch.from_numpy(tokenizer.boundary_ids)
        return cls(boundary_ids[boundary_ids < rows], min(rows, tokenizer.view.size))


def check_rows(ids: Sequence[int], model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Raise UserError if one of a text's tokens has no row in the model's embedding; `name` is the model's."""
    rows = embedding_rows(model)
    if lacking := [id_ for id_ in ids if id_ >= rows]:
        token = tokenizer.convert_ids_to_tokens(lacking[0])
        raise UserError(
            f"{name}: the text needs the token {token!r} (id {lacking[0]}), and the model has only {rows} rows of "
            "tokens, none for it: leave it out of the text"
        )
