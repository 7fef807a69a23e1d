"""What scores questions: a model, a point between a base model and its tuned child, or an ensemble.

One model is in memory at a time. All points of a sweep share it: each point's tensors are computed anew from both
parents, one at a time, and written into it, so that no rounding adds up from point to point.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.calibration.choices import ChoiceEncoder, EncodedQuestion
from alm_pipeline.calibration.packing import ChoiceScorer
from alm_pipeline.config import Dtype, ScoreConfig
from alm_pipeline.ensemble.config import EnsembleConfig, MemberConfig, ensemble_file, read_config
from alm_pipeline.ensemble.loading import load_ensemble, local_name
from alm_pipeline.ensemble.logprobs import row_predictions
from alm_pipeline.ensemble.model import EnsembleModel
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork
from alm_pipeline.merging.parents import Parents, open_parents
from alm_pipeline.merging.rule import SPARSE_METHODS, MergeRule
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.health.finite_weights import is_finite
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.vocabulary.byte_view import byte_view
from storage.errors import UserError

QuestionScorer = Callable[[Sequence[EncodedQuestion]], list[npt.NDArray[np.float64]]]
"""Returns the log-probabilities of each question's choices; none for a question that can't be scored."""


@dataclass(frozen=True)
class SingleModel:
    """A model as it is, with its own tokenizer or another one with the same ids."""

    model: ModelReference
    tokenizer: LoadedTokenizer

    @classmethod
    def named(cls, name: str, trust_remote_code: bool = False) -> "SingleModel":
        """Return a model by name: a folder, a stored student's URL, a hub name, or `demo:NAME`."""
        reference = ModelReference(local_name(name), trust_remote_code)
        return cls(reference, reference.tokenizer)

    @property
    def label(self) -> str:
        return self.model.label

    @property
    def weight(self) -> float | None:
        return None

    @property
    def reads(self) -> object:
        """What decides how it reads texts: models that read alike have an equal one."""
        return self.tokenizer.identity, self.model.context_length

    def identity(self) -> dict[str, Any]:
        return {"model": self.model.identity}

    def encoder(self) -> ChoiceEncoder:
        return ChoiceEncoder.of(self.tokenizer, self.model.context_length)

    def check_unchanged(self) -> None:
        self.model.check_unchanged()
        self.tokenizer.check_unchanged()


@dataclass(frozen=True)
class MergePoint:
    """A point between a base model and its tuned child, with the child's configuration and tokenizer."""

    base: ModelReference
    tuned: ModelReference
    rule: MergeRule

    @property
    def label(self) -> str:
        return f"{self.tuned.label}-{self.rule.method}-{self.rule.weight:g}"

    @property
    def weight(self) -> float | None:
        return self.rule.weight

    @property
    def tokenizer(self) -> LoadedTokenizer:
        return self.tuned.tokenizer

    @property
    def reads(self) -> object:
        return self.tokenizer.identity, self.tuned.context_length

    def identity(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"method": self.rule.method, "weight": self.rule.weight}
        if self.rule.method in SPARSE_METHODS:
            rule["density"] = self.rule.density
        if self.rule.method == "dare":
            rule["seed"] = self.rule.seed
        return {"base": self.base.identity, "tuned": self.tuned.identity, "rule": rule}

    def encoder(self) -> ChoiceEncoder:
        return ChoiceEncoder.of(self.tuned.tokenizer, self.tuned.context_length)

    def check_unchanged(self) -> None:
        self.base.check_unchanged()
        self.tuned.check_unchanged()
        self.tuned.tokenizer.check_unchanged()


@dataclass(frozen=True)
class EnsembleOfModels:
    """Several models as one."""

    name: str
    config: EnsembleConfig
    weight: float | None = None
    """λ, if it is a point between its first and its second member"""

    @classmethod
    def between(cls, names: Sequence[str], weight: float, **settings: Any) -> Self:
        """Return the ensemble of two models with the weights 1 − λ and λ; `settings` are those of its members."""
        members = tuple(
            MemberConfig(model=name, weight=share, **settings)
            for name, share in zip(names, (1 - weight, weight), strict=True)
        )
        return cls(f"ensemble-{weight:g}", EnsembleConfig(members=members), weight)

    @property
    def label(self) -> str:
        return Path(self.name).name.removesuffix(".yaml").removesuffix(".yml")

    @cached_property
    def _members(self) -> list[SingleModel]:
        members = [SingleModel.named(member.model, member.trust_remote_code) for member in self.config.members]
        named = zip(self.config.members, members, strict=True)
        return [
            SingleModel(each.model, LoadedTokenizer(local_name(member.tokenizer))) if member.tokenizer else each
            for member, each in named
        ]

    @cached_property
    def loaded(self) -> EnsembleModel:
        """The ensemble in memory: its members decide which tokens texts are spelled with."""
        return load_ensemble(self.config)

    @property
    def reads(self) -> object:
        return self.name

    def release(self) -> None:
        """Let go of the models in memory."""
        self.__dict__.pop("loaded", None)

    def identity(self) -> dict[str, Any]:
        members = [
            {"model": each.model.identity, "tokenizer": each.tokenizer.identity, "weight": member.weight}
            | {"dtype": member.dtype}
            | ({"hypernetwork": Hypernetwork.load(member.hypernetwork).identity} if member.hypernetwork else {})
            for member, each in zip(self.config.members, self._members, strict=True)
        ]
        return {"members": members, "mean": self.config.mean, "vocabulary": self.config.vocabulary}

    def encoder(self) -> ChoiceEncoder:
        ensemble, lead = self.loaded, self._members[0].tokenizer
        first = ensemble.config.bos_token_id
        first = ensemble.config.eos_token_id if first is None else first
        view = byte_view(ensemble.tokenizer.backend_tokenizer)

        def encode(text: str) -> Sequence[int]:
            return ensemble.ids(text, add_special_tokens=False)

        return ChoiceEncoder(encode, view, lead.frame[0], first, context_length(ensemble.config))

    def check_unchanged(self) -> None:
        for member in self._members:
            member.check_unchanged()


ScoredModel = SingleModel | MergePoint | EnsembleOfModels


def model_named(name: str, trust_remote_code: bool = False) -> SingleModel | EnsembleOfModels:
    """Return a model or an ensemble by name."""
    if file := ensemble_file(name):
        return EnsembleOfModels(name, read_config(file))
    return SingleModel.named(name, trust_remote_code)


class ModelsInTurn:
    """Loads one model after the other; a context manager, which lets go of the last one."""

    def __init__(self, dtype: Dtype = "float32", device: str | None = None) -> None:
        self._dtype, self._device = dtype, device
        self._line: _Line | None = None
        self._ensemble: EnsembleOfModels | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "ModelsInTurn":
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def scorer(self, scored: ScoredModel) -> QuestionScorer:
        """Return what scores questions with a model, which takes the place of the model before.

        Raises UserError if it can't be loaded, or if parents do not fit.
        """
        if isinstance(scored, EnsembleOfModels):
            self._let_go()
            self._ensemble, ensemble = scored, scored.loaded
            return partial(_ensemble_scores, ensemble)
        return ChoiceScorer(Scorer.of(*self.model(scored), ScoreConfig(dtype=self._dtype)))

    def model(self, scored: ScoredModel) -> tuple[PreTrainedModel, LoadedTokenizer]:
        """Return a model in memory, in the place of the model before, and the tokenizer to use.

        Raises UserError as `scorer` does, and for an ensemble: it has several models.
        """
        match scored:
            case SingleModel():
                self._let_go()
                return scored.model.load(self._dtype, device=self._device), scored.tokenizer
            case MergePoint():
                return self._line_of(scored).at(scored.rule), scored.tuned.tokenizer
            case EnsembleOfModels():
                raise UserError(f"{scored.name}: is an ensemble, and not a single model")
            case _:
                assert_never(scored)

    def _line_of(self, point: MergePoint) -> "_Line":
        if self._line is None or (self._line.base, self._line.tuned) != (point.base, point.tuned):
            self._let_go()
            parents = self._stack.enter_context(open_parents(point.base, point.tuned, point.tuned))
            model = point.tuned.load(self._dtype, device=self._device)
            self._line = _Line(point.base, point.tuned, parents, model)
        return self._line

    def _let_go(self) -> None:
        if self._ensemble:
            self._ensemble.release()
        self._line = self._ensemble = None
        self._stack.close()


def _ensemble_scores(ensemble: EnsembleModel, questions: Sequence[EncodedQuestion]) -> list[npt.NDArray[np.float64]]:
    rows = [choice.row() for question in questions for choice in question.choices]
    sums = iter([float(row.logprobs.sum(dtype=np.float64)) for row in row_predictions(ensemble, rows)])
    return [np.array([next(sums) for _ in question.choices]) for question in questions]


class _Line:
    """A model in memory that is moved along the line from a base model to its tuned child."""

    def __init__(self, base: ModelReference, tuned: ModelReference, parents: Parents, model: PreTrainedModel) -> None:
        """Raises UserError if the model's tensors have other names than those in its files."""
        self.base, self.tuned, self._parents, self._model = base, tuned, parents, model
        self._tensors: Mapping[str, Tensor] = model.state_dict()
        if unknown := sorted(parents.shapes.keys() - self._tensors.keys()):
            raise UserError(
                f"{tuned.name}: {unknown[0]} has another name in memory than in its file, so it can't be changed "
                "there: write each point with `alm merge`, and calibrate the folders side by side"
            )

    @torch.no_grad()
    def at(self, rule: MergeRule) -> PreTrainedModel:
        """Write every tensor of the point into the model, rounded as `alm merge` would store it."""
        for name in self._parents.shapes:
            values = self._parents.merged(rule, name).to(self._parents.dtype)
            if not is_finite(values):
                raise UserError(f"{name}: a weight at {rule} is not finite: use a weight that is nearer to 1")
            self._tensors[name].copy_(values)
        return self._model
