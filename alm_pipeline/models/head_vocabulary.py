"""What a model's head needs to know of the tokenizer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.vocabulary.byte_view import check_vocabulary


@dataclass(frozen=True)
class HeadVocabulary:
    """Which tokens exist, and which of them begin a word."""

    boundary_ids_K: Tensor
    """tokens that begin with white space, and special tokens"""
    rows: int | None = None
    """the tokenizer's highest id + 1: the head's further rows are padding (None: it has no padding)"""

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: LoadedTokenizer) -> "HeadVocabulary":
        """Raises UserError when the tokenizer is not the model's."""
        check_vocabulary(tokenizer.view, embedding_rows(model), tokenizer.name)
        return cls(torch.from_numpy(tokenizer.boundary_ids), tokenizer.view.size)
