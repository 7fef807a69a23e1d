"""Gives a model a new tokenizer: its embeddings, head, vocabulary size and special ids."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from alm_pipeline.models.configuration import refuse_other_tables, text_config
from alm_pipeline.models.health.finite_weights import is_finite
from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.transfer.carry_over import carry_over
from alm_pipeline.transfer.composition import Composition, compose_rows
from alm_pipeline.transfer.fvt import map_vocabulary
from alm_pipeline.transfer.initialization import Initialization, predicted_rows
from alm_pipeline.vocabulary.byte_view import check_vocabulary
from storage.errors import UserError


@dataclass(frozen=True)
class TransferResult:
    """How the embeddings of a model with a new tokenizer were made."""

    compositions: list[Composition]
    """of the input embedding and, if it is not tied, of the output embedding"""
    ngrams: int = 0
    """embeddings of n-grams, of a model of bytes"""
    predicted: int = 0
    """rows that a hypernetwork predicted, of those that would be composed"""

    @property
    def new_V(self) -> npt.NDArray[np.bool_]:
        """[V] whether the token's row is not a copy of one of the source's."""
        return ~self.compositions[0].copied

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows of the input embedding by how they were made; the output's are the same."""
        counts = self.compositions[0].counts()
        composed = counts.pop("composed", 0) - self.predicted
        counts |= {how: count for how, count in (("composed", composed), ("predicted", self.predicted)) if count}
        return counts | ({"n-grams": self.ngrams} if self.ngrams else {})


def swap_tokenizer(
    model: PreTrainedModel,
    source: LoadedTokenizer,
    target: LoadedTokenizer,
    initialization: Initialization | None = None,
    seed: int = 0,
) -> TransferResult:
    """Give the model the target tokenizer, in place.

    A source token without a row in the model's embedding is used for nothing. Raises UserError if many lack one, if the
    model has other tables by token, if the initialization cannot be used with the target, or if it makes rows that are
    NaN or infinite.
    """
    rows, result = new_rows(model, source, target, initialization, seed)
    _resize(model, len(rows[0]))
    for table, value in zip(embedding_tables(model), rows, strict=True):
        table.value.data[: len(value)] = value
    carry_over(model, source.fast, target.fast)
    return result


def new_rows(
    model: PreTrainedModel,
    source: LoadedTokenizer,
    target: LoadedTokenizer,
    initialization: Initialization | None = None,
    seed: int = 0,
) -> tuple[list[torch.Tensor], TransferResult]:
    """Return a row per token of the target for each of `embedding_tables`; the model stays. Raises UserError as above.

    They have the dtype and the device of the tables.
    """
    refuse_other_tables(model.config, source.name)
    check_vocabulary(source.view, embedding_rows(model), source.name)
    mapping = map_vocabulary(source, target, embedding_rows(model))
    tables = embedding_tables(model)
    initialization = initialization or Initialization()
    compositions = initialization.compositions(mapping, len({table.of_head for table in tables}))
    rows = [
        compose_rows(table.value, compositions[-1 if table.of_head else 0], mapping.source.size, seed)
        for table in tables
    ]
    predicted = predicted_rows(initialization, mapping, [table.value for table in tables])
    if len(predicted.ids):
        for value, new in zip(rows, predicted.tables, strict=True):
            value[torch.from_numpy(predicted.ids)] = new.to(value)
    for table, value in zip(tables, rows, strict=True):
        if not is_finite(value):
            raise UserError(
                f"initialization: new rows of {table.name} are NaN or infinite: the donor's embeddings are damaged, or "
                "the vocabulary has a single token: use the initialization fvt"
            )
    return rows, TransferResult(compositions, predicted=len(predicted.ids))


def _resize(model: PreTrainedModel, tokens: int) -> None:
    """Give the model's tables a row per token, and its embedding the rows that its class adds to them, as they were."""
    added = _embedding(model).weight.data[text_config(model.config).vocab_size :].clone()
    model.resize_token_embeddings(tokens, mean_resizing=False)
    if len(added):
        resized = _embedding(model)
        resized.weight = nn.Parameter(torch.cat([resized.weight.data, added]))
        resized.num_embeddings = len(resized.weight)
        model.tie_weights()


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    return model.get_input_embeddings()  # type: ignore[return-value]  # declared as any module


class EmbeddingTable(NamedTuple):
    """A parameter with one row per token."""

    name: str
    """the parameter's name in the model"""
    value: nn.Parameter
    of_head: bool


def embedding_tables(model: PreTrainedModel) -> list[EmbeddingTable]:
    """Return the input embedding, the head's weight unless it is tied, and the head's bias if it has one."""
    names = {id(value): name for name, value in model.named_parameters()}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    values = [(value, layer is layers[1]) for layer in layers for value in layer.parameters(recurse=False)]
    unique = {id(value): (value, of_head) for value, of_head in reversed(values)}
    return [EmbeddingTable(names[key], value, of_head) for key, (value, of_head) in reversed(unique.items())]
