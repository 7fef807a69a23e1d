"""The configuration of a hypernetwork's training, read from YAML or JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from alm_pipeline.config import (
    SEEDS,
    AlmConfig,
    CorpusConfig,
    Dtype,
    Frozen,
    ObjectiveConfig,
    ScoreConfig,
    StudentConfig,
    Term,
    TrainedTokenizer,
)
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.frozen import Real
from alm_pipeline.config.run import read_yaml
from alm_pipeline.hypernetwork.networks.settings import NetworkConfig, NetworkKind
from alm_pipeline.hypernetwork.sampling.settings import SamplerConfig
from alm_pipeline.objective.chunking.registry import CHUNKINGS
from storage.errors import UserError

TERMS: tuple[Term, ...] = ("alm", "sft")
"""the terms that need neither a teacher in memory nor a fixed vocabulary"""


class HypernetTrainConfig(Frozen):
    """How the network is trained; the model itself stays as it is."""

    steps: int = Field(1000, ge=0, description="The number of optimizer steps, each with a new tokenizer.")
    texts: int = Field(16, gt=0, description="The number of examples in each step.")
    learning_rate: Real | None = Field(
        None,
        gt=0,
        description="The learning rate of Adam after the warm-up; it falls to a tenth in a straight line. Default: "
        "2e-3 with `low_rank`, 3e-4 with `transformer`.",
    )
    channel_factor: Real = Field(
        3.0,
        gt=0,
        description="With the network `low_rank`: its gains and offsets per channel learn this many times as fast.",
    )
    warmup_steps: int = Field(10, ge=0, description="The steps in which the learning rate rises linearly from 0.")
    weight_decay: Real = Field(0.0, ge=0, description="The weight decay of AdamW. Default: none.")
    max_grad_norm: Real = Field(
        1.0, ge=0, description="Gradients with a larger norm are scaled down to this norm. 0 disables clipping."
    )
    ema: float | None = Field(
        0.98,
        gt=0,
        lt=1,
        description="The network that is evaluated and kept is an exponential moving average of the trained one, which "
        "keeps this share of itself at each step (after t steps at most (1 + t) / (10 + t)). `null`: the trained one.",
    )
    negatives: int | None = Field(
        None,
        gt=0,
        description="Of a step's new tokens that its texts do not contain, how many have a row in the head, drawn at "
        "random, with logits raised by what the others lack. Saves the large networks most of their time. Default: all "
        "with `low_rank`, 2,048 with `transformer`.",
    )
    dtype: Dtype = Field("float32", description="The precision of the model's weights; the network is in float32.")
    seed: int = Field(0, ge=0, lt=SEEDS, description="The seed of the tokenizers, the texts and the new weights.")
    checkpoint_steps: int = Field(
        100, gt=0, description="Steps between two checkpoints, from which a killed run resumes."
    )
    shuffle_buffer: int = Field(
        10_000, ge=1, description="The number of examples in memory that examples are shuffled with."
    )


class HypernetEvaluationConfig(Frozen):
    """How the network is evaluated: with real tokenizers, which are never drawn, on held-out texts."""

    tokenizers: tuple[str, ...] = Field(
        (), description="Tokenizers to evaluate with: local folders, names on the Hub or `demo:NAME`."
    )
    trained: TrainedTokenizer | None = Field(
        TrainedTokenizer(),
        description="The settings of a BPE tokenizer that is trained on the corpus, to evaluate with as well. `null`: "
        "none.",
    )
    steps: int = Field(100, gt=0, description="Training steps between two evaluations.")
    max_examples: int = Field(50, gt=0, description="The number of held-out examples in each evaluation, the first.")
    patience: int | None = Field(
        None,
        gt=0,
        description="Stop after this many evaluations in a row that do not lower the mean bits per byte of all "
        "tokenizers. Default: never. The network with the lowest mean is the one that is kept.",
    )

    @model_validator(mode="after")
    def _has_a_tokenizer(self) -> Self:
        if not self.tokenizers and self.trained is None:
            raise ValueError("tokenizers: there is none to evaluate with: name some, or leave `trained` out")
        return self


class HypernetConfig(Frozen):
    """Everything that decides a hypernetwork."""

    corpus: CorpusConfig = Field(description="The texts, and how they are cut into examples.")
    model: str = Field(
        description="The model whose tokenizers are to be exchanged: a local folder, a name on the Hub or `demo:NAME`."
    )
    teacher: str | None = Field(
        None, description="With the term `alm`: the model whose likelihoods are matched. Default: `model` itself."
    )
    score: ScoreConfig = Field(ScoreConfig(), description="With the term `alm`: how the teacher scores the examples.")
    objective: ObjectiveConfig = Field(
        ObjectiveConfig(terms={"sft": 1.0}, balance="temperature"),
        description="What the model with drawn tokenizers is to match: the texts (`sft`), the teacher's chunks "
        "(`alm`), or both. Default: `sft` alone, which needs no teacher.",
    )
    sampler: SamplerConfig = Field(SamplerConfig(), description="How tokenizers are drawn.")
    network: NetworkConfig = Field(NetworkConfig(), description="The network that predicts embeddings.")
    train: HypernetTrainConfig = Field(HypernetTrainConfig(), description="How the network is trained.")
    evaluation: HypernetEvaluationConfig = Field(
        HypernetEvaluationConfig(), description="How the network is evaluated, and which one is kept."
    )
    trust_remote_code: bool = Field(
        False, description="Whether to run code that comes with models. Only for repositories that you trust."
    )

    @field_validator("objective")
    @classmethod
    def _can_be_computed(cls, objective: ObjectiveConfig) -> ObjectiveConfig:
        if other := [term for term in objective.terms if term not in TERMS]:
            raise ValueError(f"terms: {other[0]} needs a fixed vocabulary or a teacher in memory: use {TERMS}")
        if CHUNKINGS[objective.chunking].looks_at_tokens:
            raise ValueError(
                f"chunking {objective.chunking} needs a table for each pair of tokenizers, and each step draws one: "
                "use boundary"
            )
        if objective.balance == "gradmag":
            raise ValueError(f"balance {objective.balance} balances a student's last layer: use fixed or temperature")
        if objective.assistant_only:
            raise ValueError("assistant_only: a hypernetwork is trained on plain texts: remove it")
        return objective

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        default = HypernetTrainConfig.model_fields["channel_factor"].default
        if self.network.kind != "low_rank" and self.train.channel_factor != default:
            raise ValueError(f"train.channel_factor: is not used, as the network is {self.network.kind}: leave it out")
        return self

    @property
    def needs_scores(self) -> bool:
        """Whether the teacher's scores are read."""
        return "alm" in self.objective.terms

    @property
    def negatives(self) -> int | None:
        """The new tokens with a row in the head beside those of the texts; None: all."""
        if self.train.negatives is None and self.network.kind == "transformer":
            return _NEGATIVES
        return self.train.negatives

    @property
    def learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        return _LEARNING_RATES[self.network.kind] if self.train.learning_rate is None else self.train.learning_rate

    def training_identity(self) -> dict[str, Any]:
        """Return what of `train` decides the network."""
        chosen = {"learning_rate": self.learning_rate, "negatives": self.negatives}
        return self.train.model_dump(mode="json", exclude={"checkpoint_steps"}) | chosen

    def distillation(self) -> AlmConfig:
        """Return the run whose examples, teacher tokens and scores the training reads.

        It is that of a student which keeps its tokenizer, so that the caches are shared with other runs.
        """
        return AlmConfig(
            corpus=self.corpus,
            teacher=self.teacher or self.model,
            student=StudentConfig(model=self.model),
            score=self.score,
            trust_remote_code=self.trust_remote_code,
        )


_NEGATIVES = 2048
_LEARNING_RATES: Mapping[NetworkKind, float] = {"low_rank": 2e-3, "transformer": 3e-4}
assert set(TERMS) <= set(get_args(Term))


def load_hypernet_config(file: Path) -> HypernetConfig:
    """Load a configuration from a YAML or JSON file. Raises UserError naming the file and each wrong field."""
    content = read_yaml(file, "see docs/how-to/hypernetwork.md for a complete one")
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not a mapping of fields to values: give it `corpus` and `model`")
    return parse_hypernet_config(content, str(file))


def parse_hypernet_config(content: dict[str, Any], origin: str = "") -> HypernetConfig:
    """Build a configuration from plain values; error messages begin with their source, `origin`."""
    try:
        return HypernetConfig.model_validate(content)
    except ValidationError as error:
        where = f"{origin}: " if origin else ""
        raise UserError(f"{where}the configuration is wrong:\n{wrong_fields(error, HypernetConfig)}") from error
