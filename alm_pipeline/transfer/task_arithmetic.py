"""Task arithmetic: applies the transfer of a base model to a fine-tune of the same base.

With the parameters θ of the base, the transferred base and the fine-tune, every tensor without a row per token becomes

    θ_fine-tune + λ (θ_transferred − θ_base)

(Ilharco et al. 2023, 2212.04089). Embeddings and head have other rows in the new vocabulary. With the initialization F
by FVT, which composes each new row as a mean of old ones, they become

    F(E_fine-tune) + λ (E_transferred − F(E_base))

So what the fine-tune learned about old tokens reaches the new tokens that are composed of them, and λ = 0 is the
fine-tune's own zero-step transfer. (ZeTT, 2405.07883, uses E_transferred instead, and loses the fine-tune's
embeddings.) Tokens that the fine-tune added to the base's vocabulary are added to the new one, with their rows.

One tensor of each model is in memory at a time, and the tensors of one file of the result.
"""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.models.configuration import empty_model, refuse_other_tables, text_config, ties_embeddings
from alm_pipeline.models.damage import reading_model
from alm_pipeline.models.finite_weights import first_names
from alm_pipeline.models.library_log import quiet_transformers
from alm_pipeline.models.loaded_files import GENERATION_CONFIG
from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.transfer.carry_over import carry_over, carry_template
from alm_pipeline.transfer.composition import Composition, compose_rows
from alm_pipeline.transfer.fvt import map_vocabulary, special_ids
from alm_pipeline.transfer.swap import EmbeddingTable, embedding_tables
from alm_pipeline.transfer.weights import Weights, write_weights
from alm_pipeline.vocabulary.byte_view import check_vocabulary
from storage.errors import UserError

_HEAD = "lm_head.weight"
"""the head's tensor, which some models store although it is tied to the embedding"""
_SAVE_AGAIN = (
    "all three models must come from one base and be saved alike: load and save them with this version of transformers"
)


def apply_transfer(
    base: str,
    transferred: str,
    fine_tune: str,
    folder: Path | str,
    *,
    scale: float = 1.0,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Write the fine-tune with the transferred base's tokenizer into a new folder; `scale` is λ.

    Raises UserError if the folder exists and is not empty, or if the models do not come from one base: their tensors,
    shapes or vocabularies differ.
    """
    models = [ModelReference(name, trust_remote_code) for name in (base, transferred, fine_tune)]
    with new_folder(Path(folder)) as written, ExitStack() as stack:
        weights = _ModelWeights(*(stack.enter_context(Weights(model)) for model in models))
        refuse_other_tables(models[1].load_config(), models[1].name)
        vocabulary = _MergedVocabulary.of(*models)
        model = _empty_model(models[1], models[2], vocabulary.rows)
        tables = {table.name: table for table in embedding_tables(model)}
        _check(weights, tables)
        make_tensor = partial(_tensor, weights=weights, tables=tables, vocabulary=vocabulary, scale=scale, seed=seed)
        dtype = getattr(torch, models[2].weights_dtype)
        write_weights(written, _sizes(weights, tables, vocabulary), make_tensor, dtype)
        carry_over(model, vocabulary.source, vocabulary.target)
        with quiet_transformers():
            model.config.save_pretrained(written)
            model.generation_config.save_pretrained(written)
            vocabulary.target.save_pretrained(written)
        for read in models:
            read.check_unchanged()
            read.tokenizer.check_unchanged()


class _ModelWeights(NamedTuple):
    base: Weights
    transferred: Weights
    fine_tune: Weights


@dataclass(frozen=True)
class _MergedVocabulary:
    """The tokens of the fine-tune and of the result."""

    source: PreTrainedTokenizerFast
    """the fine-tune's tokenizer"""
    target: PreTrainedTokenizerFast
    """the transferred base's tokenizer, with the tokens that the fine-tune added to the base's"""
    composition: Composition
    """composes the transferred base's tokens from the base's"""
    base_tokens: int
    """the base tokenizer's highest id + 1"""
    added: dict[int, int]
    """the result's id → the fine-tune's id of every token that the fine-tune added, also of those the target had"""
    rows: int
    """the rows of the result's embedding"""

    @classmethod
    def of(cls, base: ModelReference, transferred: ModelReference, fine_tune: ModelReference) -> "_MergedVocabulary":
        """Merge the vocabularies. Raises UserError if the fine-tune's tokenizer is not the base's with tokens added.

        A token that the fine-tune added without giving it a row is left out.
        """
        # a copy, since tokens are added to it
        target, source = copy.deepcopy(transferred.tokenizer.fast), fine_tune.tokenizer.fast
        source_ids, base_ids = source.get_vocab(), base.tokenizer.fast.get_vocab()
        if other := {token for token, id_ in base_ids.items() if source_ids.get(token) != id_}:
            raise UserError(
                f"{fine_tune.name}: its tokenizer lacks tokens of {base.name}'s, or has them at other ids "
                f"({first_names(other)}): it is not a fine-tune of this base"
            )
        for model in (base, fine_tune):
            check_vocabulary(model.tokenizer.view, model.vocabulary_rows, model.name)
        in_both = min(base.vocabulary_rows, fine_tune.vocabulary_rows)
        mapping = map_vocabulary(base.tokenizer, LoadedTokenizer.of(target), in_both)
        with_row = {token for token, id_ in source_ids.items() if id_ < fine_tune.vocabulary_rows}
        literals = sorted(with_row - base_ids.keys(), key=source_ids.__getitem__)
        # an ordinary token of the target is not a special one of the same literal, and becomes it here
        special, known, added_known = special_ids(source), target.get_vocab(), target.get_added_vocab()
        new = [literal for literal in literals if literal not in (added_known if literal in special else known)]
        target.add_tokens([source.added_tokens_decoder.get(source_ids[literal], literal) for literal in new])
        ids = target.get_vocab()
        added = {ids[literal]: source_ids[literal] for literal in literals}
        carry_template(source, target)
        rows = max(transferred.vocabulary_rows, max(ids.values()) + 1)
        return cls(source, target, mapping.means(), mapping.source.size, added, rows)


def _empty_model(transferred: ModelReference, fine_tune: ModelReference, rows: int) -> PreTrainedModel:
    """Return the result without weights: the fine-tune's configuration with the transferred vocabulary and head."""
    transferred_config, config = (model.load_config() for model in (transferred, fine_tune))
    kinds = config.model_type, transferred_config.model_type
    if kinds[0] != kinds[1]:
        raise UserError(
            f"{fine_tune.name} is a {kinds[0]} model and {transferred.name} a {kinds[1]} model: they do not have the "
            "same base"
        )
    ties = ties_embeddings(transferred_config)
    if ties and not ties_embeddings(config):
        raise UserError(
            f"{fine_tune.name} has a separate head and {transferred.name} ties its head to the embedding: they do not "
            "have the same base"
        )
    text_config(config).vocab_size = rows
    if ties != ties_embeddings(config):
        config.tie_word_embeddings = text_config(config).tie_word_embeddings = ties
    with reading_model(fine_tune.name, fine_tune.folder):
        with torch.device("meta"):
            model = empty_model(config, fine_tune.name, trust_remote_code=fine_tune.trust_remote_code)
        if (fine_tune.folder / GENERATION_CONFIG).is_file():
            model.generation_config = GenerationConfig.from_pretrained(fine_tune.folder)
    return model


def _check(weights: _ModelWeights, tables: Mapping[str, EmbeddingTable]) -> None:
    """Raises UserError if the models have other tensors, or tensors of other shapes except for the tables' rows."""
    names = weights.transferred.names
    if missing := tables.keys() - names:
        raise UserError(f"{weights.transferred.name}: contains no tensor {first_names(missing)}: {_SAVE_AGAIN}")
    for model in (weights.base, weights.fine_tune):
        heads = {name for name, table in tables.items() if table.of_head}
        if other := (model.names ^ names) - heads - {_HEAD}:
            raise UserError(
                f"{model.name} and {weights.transferred.name}: only one of them has {first_names(other)}: {_SAVE_AGAIN}"
            )
        for name in sorted(names & model.names):
            cut = 1 if name in tables else 0
            shapes = model.shape(name), weights.transferred.shape(name)
            if shapes[0][cut:] != shapes[1][cut:]:
                raise UserError(
                    f"{model.name}: {name} has shape {shapes[0]}, but shape {shapes[1]} in {weights.transferred.name}"
                )


def _sizes(
    weights: _ModelWeights, tables: Mapping[str, EmbeddingTable], vocabulary: _MergedVocabulary
) -> dict[str, int]:
    shapes = {name: weights.transferred.shape(name) for name in sorted(weights.transferred.names)}
    return {name: tables[name].value.numel() if name in tables else prod(shape) for name, shape in shapes.items()}


def _tensor(
    name: str,
    weights: _ModelWeights,
    tables: Mapping[str, EmbeddingTable],
    vocabulary: _MergedVocabulary,
    scale: float,
    seed: int,
) -> Tensor:
    """Return a tensor of the result, in float32."""
    if name in tables:
        return _table(name, weights, tables, vocabulary, scale, seed)
    change = weights.transferred.read(name).float() - weights.base.read(name).float()
    return weights.fine_tune.read(name).float() + scale * change


def _table(
    name: str,
    weights: _ModelWeights,
    tables: Mapping[str, EmbeddingTable],
    vocabulary: _MergedVocabulary,
    scale: float,
    seed: int,
) -> Tensor:
    """[rows, ...] F(E_fine-tune) + λ (E_transferred − F(E_base)); further rows are the transferred base's."""
    embedding = next(table.name for table in tables.values() if not table.of_head)
    transferred, base, fine_tune = (
        # a tied head is the embedding
        model.read(name if name in model.names else embedding).float()
        for model in (weights.transferred, weights.base, weights.fine_tune)
    )
    tokens = len(vocabulary.composition.copied)
    composed_fine_tune, composed_base = (
        compose_rows(table, vocabulary.composition, vocabulary.base_tokens, seed) for table in (fine_tune, base)
    )
    result = transferred.new_zeros(tables[name].value.shape)
    result[: len(transferred)] = transferred
    # the class adds rows to those of the vocabulary
    result[vocabulary.rows :] = transferred[len(transferred) - (len(result) - vocabulary.rows) :]
    result[:tokens] = composed_fine_tune + scale * (transferred[:tokens] - composed_base)
    for id_, source_id in vocabulary.added.items():
        result[id_] = fine_tune[source_id]
    return result
