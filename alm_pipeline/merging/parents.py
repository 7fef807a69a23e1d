"""The two parents of a merge: whether they fit, and their tensors, one at a time."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alm_pipeline.config.fields.repeated import refuse_repeated
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.merging.rule import SPARSE_METHODS, MergeRule
from alm_pipeline.merging.tensors import merge_tensors
from alm_pipeline.models.configuration import text_config, ties_embeddings
from alm_pipeline.models.health.finite_weights import first_names
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.transfer.weights import Weights
from storage.errors import UserError

USUAL_WEIGHTS = (-0.5, 1.5)
"""beyond them a merge is rarely a usable model"""
_HEAD = "lm_head.weight"
"""the head's tensor, which some models store although it is tied to the embedding"""
_NOT_COMPARED = frozenset(
    ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache")
)
_SAVE_AGAIN = "both must be one architecture, saved alike: load and save them with this version of transformers"

_log = logging.getLogger("alm_pipeline.merging.merge")


@dataclass(frozen=True)
class Parents:
    """A base model and its tuned child, which fit, with their files open."""

    base: Weights
    tuned: Weights
    shapes: Mapping[str, tuple[int, ...]]
    """of each tensor"""
    dtype: torch.dtype
    """the wider of the two"""

    def merged(self, rule: MergeRule, name: str) -> Tensor:
        """Return a tensor between the parents, in float32."""
        return merge_tensors(self.base.read(name), self.tuned.read(name), rule, name)


@contextmanager
def open_parents(base: ModelReference, tuned: ModelReference, chosen: ModelReference) -> Iterator[Parents]:
    """Open the files of both; `chosen` is the one whose configuration a merge has.

    Raises UserError if they are one model, or do not fit: other architectures, tensors, shapes or token ids, adapters,
    or quantized weights. Warns of settings in which their configurations differ.
    """
    refuse_repeated([base.name, tuned.name])
    for parent in (base, tuned):
        parent.refuse_adapter()
    _check_configurations(base, tuned)
    _check_tokens(base, tuned)
    with ExitStack() as stack:
        of_base, of_tuned = (stack.enter_context(Weights(parent)) for parent in (base, tuned))
        shapes = _common_shapes(of_base, of_tuned, tied=ties_embeddings(chosen.load_config()))
        dtype = torch.promote_types(*(getattr(torch, parent.weights_dtype) for parent in (base, tuned)))
        yield Parents(of_base, of_tuned, shapes, dtype)


def check_rule(rule: MergeRule) -> None:
    """Raise UserError if the rule's numbers are out of range; warns of a weight far beyond both parents."""
    if not 0 < rule.density <= 1:
        raise UserError(f"density {rule.density:g}: the share of changes that is kept is above 0 and at most 1")
    if rule.density != 1 and rule.method not in SPARSE_METHODS:
        raise UserError(
            f"density {rule.density:g}: only {' and '.join(SPARSE_METHODS)} have one, and {rule.method} "
            "keeps all changes"
        )
    if rule.method != "dare":
        refuse_unread(f"{rule.method} draws nothing, and only dare does", seed=(rule.seed, 0))
    low, high = USUAL_WEIGHTS
    if not low <= rule.weight <= high:
        _log.warning("weight %g: far beyond both parents (0 is the base, 1 the child)", rule.weight)


def _check_configurations(base: ModelReference, tuned: ModelReference) -> None:
    """Raises UserError if the architectures differ; warns of other settings that do."""
    configs = base.load_config(), tuned.load_config()
    if configs[0].model_type != configs[1].model_type:
        raise UserError(
            f"{base.name} is a {configs[0].model_type} model and {tuned.name} a {configs[1].model_type} model: only "
            "models of one architecture can be merged"
        )
    if ties_embeddings(configs[0]) != ties_embeddings(configs[1]):
        raise UserError(
            f"{base.name} and {tuned.name}: only one of them ties its head to its embedding (tie_word_embeddings): "
            "untie the other one and save it again"
        )
    if other := _differing(*(text_config(config).to_dict() for config in configs)):
        _log.warning("%s and %s have other settings: %s", base.name, tuned.name, ", ".join(other))


def _differing(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[str]:
    names = sorted((base.keys() | tuned.keys()) - _NOT_COMPARED)
    return [name for name in names if base.get(name) != tuned.get(name) and not name.endswith("_token_id")]


def _check_tokens(base: ModelReference, tuned: ModelReference) -> None:
    """Raises UserError if a token that both have has another id: a row would be merged with another token's."""
    ids = base.tokenizer.fast.get_vocab(), tuned.tokenizer.fast.get_vocab()
    if other := {token for token, id_ in ids[0].items() if ids[1].get(token, id_) != id_}:
        raise UserError(
            f"{base.name} and {tuned.name}: their tokenizers have other ids for {first_names(other)}: move both to one "
            "tokenizer first (alm transfer, alm apply-transfer)"
        )


def _common_shapes(base: Weights, tuned: Weights, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Return the tensors' shapes. Raises UserError if they differ, or a tensor is not of floating-point numbers."""
    names, tuned_names = (weights.names - ({_HEAD} if tied else set()) for weights in (base, tuned))
    if other := names ^ tuned_names:
        raise UserError(f"{base.name} and {tuned.name}: only one of them has {first_names(other)}: {_SAVE_AGAIN}")
    shapes = {name: base.shape(name) for name in sorted(names)}
    for name, shape in shapes.items():
        if shape != (of_tuned := tuned.shape(name)):
            raise UserError(f"{base.name}: {name} has shape {shape}, but shape {of_tuned} in {tuned.name}")
        for weights in (base, tuned):
            if not weights.is_floating_point(name):
                raise UserError(
                    f"{weights.name}: {name} does not hold floating-point numbers: quantized weights can't be merged; "
                    "name the model before it was quantized"
                )
    return shapes
