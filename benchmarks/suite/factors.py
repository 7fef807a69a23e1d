"""What the suite compares: experiments, each a reference and variants that differ from it in named settings.

An experiment is a factor of the objective, the training or the initial embeddings. Its variants are compared with its
reference, pair by pair of models and seed by seed. Variants of other experiments that are the same student are trained
once.
"""

import itertools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from alm_pipeline.config import Chunking, Debias, Divergence
from alm_pipeline.methods.registry import METHODS

Settings = Mapping[str, Any]
"""values of a configuration by dotted name"""
PairName = Literal["bpe", "bytes", "body"]
PAIRS: tuple[PairName, ...] = get_args(PairName)
TEMPERATURE = 5.0


class Variant(NamedTuple):
    """A student of an experiment."""

    name: str
    settings: Settings
    rate: float = 1.0
    """of learning, over the size's own"""
    embedding_rate: float = 1.0
    """that of the embeddings, over the body's"""


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
    """Return settings of an objective whose terms have equal weights, in proportion at every temperature."""
    weights = dict.fromkeys(terms.split(" + "), 1.0)
    values = {"terms": weights, "temperature": temperature, "balance": "temperature", **settings}
    return {f"objective.{name}": value for name, value in values.items()}


def _forms() -> tuple[Variant, ...]:
    forms: tuple[Debias, ...] = get_args(Debias)
    chosen = sorted(forms, key=lambda form: form != "end")  # the published form first
    mixes = itertools.product(("alm", "alm + sft"), chosen)
    variants = [Variant(f"{terms}, {form}", objective(terms, debias=form)) for terms, form in mixes]
    untrained = {**objective(), "train.steps": 0, "train.warmup_steps": 0}
    return (*variants, Variant("sft", objective("sft")), Variant("untrained", untrained))


def _terms() -> tuple[Variant, ...]:
    """The published objective, that of the recipes, and what it consists of: rows that a large size has time for."""
    parts = [
        Variant(f"{terms}, {chunking}", objective(terms, debias="both", chunking=chunking))
        for chunking in ("anchor", "boundary")
        for terms in ("alm + sft", "alm")
    ]
    return (*parts, Variant("published", objective("alm", debias="end")), Variant("sft", objective("sft")))


def _each(name: str, values: tuple[Any, ...], **settings: Any) -> tuple[Variant, ...]:
    return tuple(Variant(f"{name} {value}", objective(**{**settings, name: value})) for value in values)


def _rates() -> tuple[Variant, ...]:
    settings = objective(debias="both")
    of_all = (Variant(f"rate × {rate:g}", settings, rate=rate) for rate in (1.0, 0.3, 3.0))
    of_embeddings = (Variant(f"embeddings × {rate:g}", settings, embedding_rate=rate) for rate in (0.3, 3.0, 10.0))
    return (*of_all, *of_embeddings)


def _methods() -> tuple[Variant, ...]:
    """The methods of `alm compare-methods`, in the order of the paper's table; those without other caches."""
    names = ("alm", "alm+sft", "mined", "sft", "dskd", "uld", "gold", "simct", "alm-published")
    shared = {"objective.temperature": TEMPERATURE}
    return tuple(Variant(name, {**shared, **METHODS[name]}) for name in names)


def _mixes() -> tuple[Variant, ...]:
    """ALM and SFT in several proportions, by either balance: what each gives of bits for KL."""
    mixes = [("temperature", alm, 1.0) for alm in (1.0, 3.0, 10.0)]
    mixes += [("gradmag", *mix) for mix in ((1.0, 1.0), (1.0, 3.0), (3.0, 1.0))]
    return tuple(
        Variant(
            f"{balance}, {alm:g} : {sft:g}",
            {**objective(debias="both", balance=balance), "objective.terms": {"alm": alm, "sft": sft}},
        )
        for balance, alm, sft in mixes
    )


def _initializations() -> tuple[Variant, ...]:
    base = objective(debias="both")
    methods = [
        Variant(method, {**base, "student.initialization": method}) for method in ("fvt", "focus", "mean", "random")
    ]
    without_level = [
        Variant(f"{method}, no level", {**base, "student.initialization": method, "student.level": "none"})
        for method in ("fvt", "focus")
    ]
    return (*methods, *without_level)


def _dense() -> tuple[Variant, ...]:
    """The term `bpm`, which reads the stored top-k; all variants have the same scores, so that they compare."""
    top = {"score.top_k": 16}
    mixes = ("alm + sft", "alm + sft + bpm", "sft + bpm", "alm + bpm", "bpm", "sft")
    return tuple(Variant(terms, {**objective(terms, debias="both"), **top}) for terms in mixes)


EXPERIMENTS: dict[str, Experiment] = {
    "forms": Experiment("Which end is debiased, with SFT and without?", _forms(), PAIRS),
    "terms": Experiment("What is ALM beside SFT, and by which chunks?", _terms()),
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
    "balance": Experiment(
        "How are ALM and SFT balanced?", _each("balance", ("temperature", "fixed", "gradmag"), debias="both")
    ),
    "mix": Experiment("In which proportion are ALM and SFT mixed?", _mixes()),
    "dense": Experiment("What does the stored top-k add?", _dense()),
    "methods": Experiment("Which method?", _methods()),
    "rates": Experiment("Which learning rate, and which of the embeddings?", _rates()),
    "initialization": Experiment("Which initial embeddings?", _initializations()),
}
