"""Task arithmetic: a base model's transfer, applied to a fine-tune of the same base.

With θ of the base, the transferred base and the fine-tune, every tensor that has no row for each token becomes

    θ_fine-tune + λ (θ_transferred − θ_base)

(Ilharco et al. 2023, 2212.04089). Embeddings and head have other rows in the new vocabulary; with F the initialization
by FVT, which writes each new row as a mean of old ones:

    F(E_fine-tune) + λ (E_transferred − F(E_base))

So what the fine-tune learnt of old tokens reaches the new ones made of them, and λ = 0 is the fine-tune's own zero-step
transfer. (ZeTT, 2405.07883, takes E_transferred as it is there, which gives up the fine-tune's embeddings.) Tokens that
the fine-tune added to the base's vocabulary are added to the new one, with its rows.

One tensor of each model is in memory at a time, and of the result one file's worth.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.models.files import model_folder, quiet_transformers
from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.transfer.carry_over import carry_over, carry_template
from alm_pipeline.transfer.composition import Composition, compose_rows
from alm_pipeline.transfer.fvt import map_vocabulary
from alm_pipeline.transfer.swap import EmbeddingTable, embedding_tables
from alm_pipeline.transfer.weights import Weights, first_names, write_weights
from storage.errors import UserError

_HEAD = "lm_head.weight"
"""which some keep beside the embedding that it is tied to"""
_SAVE_AGAIN = "the three have to be of one base, and saved alike: load and save them with this version of transformers"


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
    """Write the fine-tune in the transferred base's tokenizer into a new folder; `scale` is λ.

    Raises UserError when the folder is there and not empty, and when the models are not of one base: other tensors,
    other shapes, another vocabulary.
    """
    with new_folder(Path(folder)) as written, ExitStack() as stack:
        weights = _Weights(*(stack.enter_context(Weights(name)) for name in (base, transferred, fine_tune)))
        vocabulary = _Vocabulary.of(base, transferred, fine_tune)
        model = _empty_model(transferred, fine_tune, vocabulary.rows, trust_remote_code)
        tables = {table.name: table for table in embedding_tables(model)}
        _check(weights, tables)
        made = partial(_tensor, weights=weights, tables=tables, vocabulary=vocabulary, scale=scale, seed=seed)
        dtype = getattr(torch, ModelReference(fine_tune).weights_dtype)
        write_weights(written, _sizes(weights, tables, vocabulary), made, dtype)
        carry_over(model, vocabulary.source, vocabulary.target)
        with quiet_transformers():
            model.config.save_pretrained(written)
            model.generation_config.save_pretrained(written)
            vocabulary.target.save_pretrained(written)


class _Weights(NamedTuple):
    base: Weights
    transferred: Weights
    fine_tune: Weights


@dataclass(frozen=True)
class _Vocabulary:
    """The fine-tune's tokens and those of the result."""

    source: PreTrainedTokenizerFast
    """the fine-tune's tokenizer"""
    target: PreTrainedTokenizerFast
    """the transferred base's, with what the fine-tune added to the base's"""
    composition: Composition
    """of the transferred base's tokens, out of the base's"""
    base_tokens: int
    """the base tokenizer's highest id + 1"""
    added: dict[int, int]
    """the result's id → the fine-tune's, of tokens that the fine-tune added, whether or not the target had them"""
    rows: int
    """of the result's embedding"""

    @classmethod
    def of(cls, base: str, transferred: str, fine_tune: str) -> "_Vocabulary":
        """Raises UserError when the fine-tune's tokenizer is not the base's with tokens added."""
        known, target, source = (load_tokenizer(name) for name in (base, transferred, fine_tune))
        ours, theirs = source.get_vocab(), known.get_vocab()
        if other := {token for token, id_ in theirs.items() if ours.get(token) != id_}:
            raise UserError(
                f"{fine_tune}: its tokenizer lacks tokens of {base}'s, or has them at other ids "
                f"({first_names(other)}): it is not a fine-tune of this base"
            )
        mapping = map_vocabulary(known, target)
        literals, held = sorted(ours.keys() - theirs.keys(), key=ours.__getitem__), target.get_vocab()
        tokens = source.added_tokens_decoder
        target.add_tokens([tokens.get(ours[literal], literal) for literal in literals if literal not in held])
        ids = target.get_vocab()
        added = {ids[literal]: ours[literal] for literal in literals}
        carry_template(source, target)
        rows = max(ModelReference(transferred).vocabulary_rows, max(ids.values()) + 1)
        return cls(source, target, mapping.means(), mapping.source.size, added, rows)


def _empty_model(transferred: str, fine_tune: str, rows: int, trust_remote_code: bool) -> PreTrainedModel:
    """The result without weights: configured as the fine-tune, with the transferred base's vocabulary and head."""
    folders = model_folder(transferred), model_folder(fine_tune)
    like, config = (AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code) for folder in folders)
    if like.model_type != config.model_type:
        raise UserError(f"{fine_tune} is a {config.model_type}, {transferred} a {like.model_type}: not of one base")
    if like.tie_word_embeddings and not config.tie_word_embeddings:
        raise UserError(f"{fine_tune} has a head of its own, {transferred} ties it to the embedding: not of one base")
    config.get_text_config().vocab_size = rows
    config.tie_word_embeddings = like.tie_word_embeddings
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if (folders[1] / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folders[1])
    return model


def _check(weights: _Weights, tables: Mapping[str, EmbeddingTable]) -> None:
    """Raises UserError unless the three hold the same tensors of the same shapes, but for tables' rows."""
    wanted = weights.transferred.names
    if missing := tables.keys() - wanted:
        raise UserError(f"{weights.transferred.name}: holds no tensor {first_names(missing)}: {_SAVE_AGAIN}")
    for own in (weights.base, weights.fine_tune):
        heads = {name for name, table in tables.items() if table.of_head}
        if other := (own.names ^ wanted) - heads - {_HEAD}:
            raise UserError(
                f"{own.name} and {weights.transferred.name}: only one of them has {first_names(other)}: {_SAVE_AGAIN}"
            )
        for name in sorted(wanted & own.names):
            cut = 1 if name in tables else 0
            shapes = own.shape(name), weights.transferred.shape(name)
            if shapes[0][cut:] != shapes[1][cut:]:
                raise UserError(
                    f"{own.name}: {name} has the shape {shapes[0]}, {weights.transferred.name}'s {shapes[1]}"
                )


def _sizes(weights: _Weights, tables: Mapping[str, EmbeddingTable], vocabulary: _Vocabulary) -> dict[str, int]:
    shapes = {name: weights.transferred.shape(name) for name in sorted(weights.transferred.names)}
    return {name: prod((vocabulary.rows, *shape[1:]) if name in tables else shape) for name, shape in shapes.items()}


def _tensor(
    name: str,
    weights: _Weights,
    tables: Mapping[str, EmbeddingTable],
    vocabulary: _Vocabulary,
    scale: float,
    seed: int,
) -> Tensor:
    """The result's tensor, in float32."""
    if name in tables:
        return _table(name, weights, tables, vocabulary, scale, seed)
    moved = weights.transferred.read(name).float() - weights.base.read(name).float()
    return weights.fine_tune.read(name).float() + scale * moved


def _table(
    name: str, weights: _Weights, tables: Mapping[str, EmbeddingTable], vocabulary: _Vocabulary, scale: float, seed: int
) -> Tensor:
    """[rows, ...]: F(E_fine-tune) + λ (E_transferred − F(E_base)); padding rows are the transferred base's."""
    embedding = next(table.name for table in tables.values() if not table.of_head)
    moved, theirs, own = (
        # a head that is tied there is the embedding
        each.read(name if name in each.names else embedding).float()
        for each in (weights.transferred, weights.base, weights.fine_tune)
    )
    tokens = len(vocabulary.composition.copied)
    fresh, before = (
        compose_rows(table, vocabulary.composition, vocabulary.base_tokens, seed) for table in (own, theirs)
    )
    result = moved.new_zeros(vocabulary.rows, *moved.shape[1:])
    result[: len(moved)] = moved
    result[:tokens] = fresh + scale * (moved[:tokens] - before)
    for id_, source in vocabulary.added.items():
        result[id_] = own[source]
    return result
