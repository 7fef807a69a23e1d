"""What the suite compares: experiments, each a reference and variants that differ from it in named settings.

An experiment is a factor of the objective, the training or the initial embeddings. Its variants are compared with its
reference, pair by pair of models and seed by seed. Variants of other experiments that are the same student are trained
once.
"""

import itertools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from alm_pipeline.config import Chunking, Debias, Divergence

Settings = Mapping[str, Any]
"""values of a configuration by dotted name"""
PairName = Literal["bpe", "bytes", "body"]
PAIRS: tuple[PairName, ...] = get_args(PairName)
TEMPERATURE = 5.0


class Variant(NamedTuple):
    """A student of an experiment."""

    name: str
    settings: Settings


class Experiment(NamedTuple):
    """Variants that are compared with the first of them."""

    question: str
    variants: tuple[Variant, ...]
    pairs: tuple[PairName, ...] = ("bpe",)
    """the pairs of models that it is made with by default"""

    @property
    def reference(self) -> Variant:
        return self.variants[0]


def objective(terms: str = "alm + sft", temperature: float = TEMPERATURE, **settings: Any) -> Settings:
    """Return settings of an objective; the ALM loss is multiplied by τ, so that its gradient keeps its size."""
    scale = {"alm": temperature}
    weights = {term: scale.get(term, 1.0) for term in terms.split(" + ")}
    values = {"terms": weights, "temperature": temperature, **settings}
    return {f"objective.{name}": value for name, value in values.items()}


def _forms() -> tuple[Variant, ...]:
    forms: tuple[Debias, ...] = get_args(Debias)
    chosen = sorted(forms, key=lambda form: form != "end")  # the published form first
    mixes = itertools.product(("alm", "alm + sft"), chosen)
    variants = [Variant(f"{terms}, {form}", objective(terms, debias=form)) for terms, form in mixes]
    untrained = {**objective(), "train.steps": 0, "train.warmup_steps": 0}
    return (*variants, Variant("sft", objective("sft")), Variant("untrained", untrained))


def _each(name: str, values: tuple[Any, ...], **settings: Any) -> tuple[Variant, ...]:
    return tuple(Variant(f"{name} {value}", objective(**{**settings, name: value})) for value in values)


def _rates() -> tuple[Variant, ...]:
    """Learning rates of the embeddings over that of the body."""
    base = objective(debias="both")
    ratios = (1, 3, 10)
    return tuple(
        Variant(f"embeddings × {ratio}", {**base, "train.learning_rates": {"*embed_tokens*": 1e-3 * ratio}})
        for ratio in ratios
    )


def _initializations() -> tuple[Variant, ...]:
    base = objective(debias="both")
    return tuple(
        Variant(method, {**base, "student.initialization": method}) for method in ("fvt", "focus", "mean", "random")
    )


EXPERIMENTS: dict[str, Experiment] = {
    "forms": Experiment("Which end is debiased, with SFT and without?", _forms(), PAIRS),
    "temperature": Experiment(
        "Which temperature?",
        tuple(
            Variant(f"{terms}, {form}, τ {tau:g}", objective(terms, tau, debias=form))
            for terms in ("alm", "alm + sft")
            for form in ("end", "both")
            for tau in (TEMPERATURE, 1.0, 20.0, 100.0)
        ),
    ),
    "gamma": Experiment("Which γ?", _each("gamma", (0.1, 0.0, 0.03, 0.3, 0.9), debias="both", terms="alm")),
    "chunking": Experiment("Which chunks?", _each("chunking", get_args(Chunking), debias="both")),
    "divergence": Experiment(
        "Which divergence?",
        _each("divergence", get_args(Divergence), debias="both", terms="alm"),
    ),
    "rates": Experiment("How fast do the embeddings learn, beside the body?", _rates()),
    "initialization": Experiment("Which initial embeddings?", _initializations()),
}
