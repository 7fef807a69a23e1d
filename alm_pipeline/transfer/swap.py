"""Putting a new tokenizer on a model: its embeddings, head, vocabulary size and special ids."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.transfer.carry_over import carry_over
from alm_pipeline.transfer.composition import Composition, compose_rows
from alm_pipeline.transfer.fvt import map_vocabulary
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.vocabulary.byte_view import check_vocabulary


@dataclass(frozen=True)
class Transferred:
    """How the embeddings of a model that was given a new tokenizer came about."""

    compositions: list[Composition]
    """of the input embedding and, where it is not tied, the output embedding"""

    def counts(self) -> dict[str, int]:
        """Rows of the input embedding that are copied, composed and drawn; the output's are of the same kinds."""
        return self.compositions[0].counts()


def swap_tokenizer(
    model: PreTrainedModel,
    source: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    initialization: Initialization | None = None,
    seed: int = 0,
) -> Transferred:
    """Put the target tokenizer on the model, in place.

    Raises UserError when the source tokenizer has tokens that the model's embedding lacks, and where the
    initialization can't do with the target.
    """
    mapping = map_vocabulary(source, target)
    check_vocabulary(mapping.source, embedding_rows(model), source.name_or_path)
    tables = embedding_tables(model)
    made = (initialization or Initialization()).compositions(mapping, len({table.of_head for table in tables}))
    rows = [
        compose_rows(table.value, made[-1] if table.of_head else made[0], mapping.source.size, seed) for table in tables
    ]
    model.resize_token_embeddings(len(mapping.pieces), mean_resizing=False)
    for table, value in zip(embedding_tables(model), rows, strict=True):
        table.value.data.copy_(value)
    carry_over(model, source, target)
    return Transferred(made)


class Table(NamedTuple):
    """A parameter with a row for every token."""

    name: str
    """in the model"""
    value: nn.Parameter
    of_head: bool


def embedding_tables(model: PreTrainedModel) -> list[Table]:
    """The input embedding, the head's weight where it is not the same, and the head's bias if there is one."""
    names = {id(value): name for name, value in model.named_parameters()}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    values = [(value, layer is layers[1]) for layer in layers for value in layer.parameters(recurse=False)]
    unique = {id(value): (value, of_head) for value, of_head in reversed(values)}
    return [Table(names[key], value, of_head) for key, (value, of_head) in reversed(unique.items())]
