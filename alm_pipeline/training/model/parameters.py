"""Selects the trained parameters of a student and their learning rates, by patterns of names (as in `fnmatch`)."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from alm_pipeline.models.output_head import headless
from alm_pipeline.training.model.projections import projections_of
from storage.errors import UserError

_SHOWN = 4


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude matching parameters from training. Raises UserError if a pattern matches none, or all are excluded."""
    names = [name for name, _ in model.named_parameters()]
    check_patterns(patterns, names, "train.freeze")
    for name, parameter in model.named_parameters():
        if first_match(name, patterns) is not None:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("train.freeze: every parameter matches, so nothing would be trained: freeze fewer")


def freeze_unread_parts(model: PreTrainedModel) -> None:
    """Exclude what text does not pass through from training: the image tower of a model that also reads images."""
    parts = (headless(model), model.get_output_embeddings(), *projections_of(model).values())
    read = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(False)


def parameter_groups(
    model: nn.Module, decayed: Iterable[str], weight_decay: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: one for each learning rate, with and without weight decay.

    `decayed` are the names of parameters with weight decay. The first pattern that matches a name gives its rate;
    without a match the optimizer's default applies. Raises UserError if a pattern matches no trained parameter.
    """
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    check_patterns(tuple(rates), list(trained), "train.learning_rates")
    decays, groups = set(decayed), dict[tuple[str | None, bool], dict[str, Any]]()
    for name, value in trained.items():
        pattern, decay = first_match(name, tuple(rates)), name in decays
        group = {"params": [], "weight_decay": weight_decay if decay else 0.0}
        rate = {} if pattern is None else {"lr": rates[pattern]}
        groups.setdefault((pattern, decay), group | rate)["params"].append(value)
    return list(groups.values())


def first_match(name: str, patterns: Sequence[str]) -> str | None:
    """Return the first pattern that matches, or None."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def check_patterns(patterns: Sequence[str], names: Sequence[str], setting: str, kind: str = "parameter") -> None:
    """Raise UserError, with similar names, if a pattern matches no name."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{setting}: {pattern} matches no {kind}; {_names_like(pattern, names)}")


def _names_like(pattern: str, names: Sequence[str]) -> str:
    """Name what the pattern may mean: patterns of the names with similar parts, or else some names."""
    wanted = [part for part in re.split(r"[.*\[\]?]+", pattern) if part]
    known = dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit())
    near = [match for part in wanted for match in difflib.get_close_matches(part, known, n=2, cutoff=0.6)]
    # a number of a layer, or of an expert, says nothing here
    similar = dict.fromkeys(
        re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names if any(part in name.split(".") for part in near)
    )
    if similar and not set(wanted) <= set(near):
        return f"similar names are {', '.join([*similar][:_SHOWN])}"
    return f"the names are {', '.join([*names[:3], '…', *names[-2:]])}"
