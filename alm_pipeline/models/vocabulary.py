"""What a model's head has to know of its tokenizer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.models.files import load_tokenizer
from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.vocabulary.byte_view import byte_view, check_vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens there are, and which of them begin a word."""

    boundary_ids_K: Tensor
    """tokens that begin with white space, and special ones"""
    rows: int | None = None
    """the tokenizer's highest id + 1: what the head has beyond is padding (None: it has none)"""

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: str) -> "Vocabulary":
        """Raises UserError when the tokenizer is not the model's."""
        view, rows = byte_view(load_tokenizer(tokenizer).backend_tokenizer), embedding_rows(model)
        check_vocabulary(view, rows, tokenizer)
        return cls(torch.from_numpy(np.flatnonzero(view.boundary(view.size))), view.size)
