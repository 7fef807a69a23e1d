"""How long the stages of a plan take on this machine: at a rate that is given, recorded, or measured on the sample."""

from dataclasses import dataclass, field
from functools import cached_property

from alm_pipeline.config.scoring import DTYPE_BYTES
from alm_pipeline.models.files import is_on_hub
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.plan import STAGES, Amount, Stage
from alm_pipeline.planning.sample import CorpusEstimate
from alm_pipeline.planning.speed.rates import Work, find_rate, rate_of, record_rate, seconds_of
from alm_pipeline.planning.trial import Trial
from alm_pipeline.transfer.level.words import ROUNDS, TOKENS
from storage.errors import UserError
from storage.fingerprints import fingerprint

TRAINED_BYTES_PER_S = 2.5e6
"""of text, while a tokenizer is trained on two cores"""


@dataclass(frozen=True)
class Rates:
    """What the reader of a plan knows better than this machine."""

    score: float | None = None
    """teacher tokens per second"""
    train: float | None = None
    """student tokens per second"""
    price_per_hour: float | None = None
    measured: dict[Stage, float] = field(default_factory=dict)
    """units per second, where they were just measured"""

    def cost(self, seconds: Amount | None) -> Amount | None:
        if self.price_per_hour is None or seconds is None:
            return None
        return Amount(value=seconds.value / 3600 * self.price_per_hour, exact=seconds.exact)


@dataclass
class Durations:
    """The seconds that amounts of work take."""

    pipeline: Pipeline
    rates: Rates
    sample: CorpusEstimate | None
    trial: Trial | None

    def seconds(self, stage: Stage, amount: Amount | None) -> Amount | None:
        """Return the seconds for an amount of the stage's unit; None if that or the rate is unknown."""
        if amount is None:
            return None
        work = amount.value / self._read_share if stage == "shard" else amount.value
        rate = self._rate(stage)
        return None if rate is None else Amount(value=seconds_of(stage, work, rate) + self._level_seconds(stage))

    def _level_seconds(self, stage: Stage) -> float:
        """Return how long the level of new tokens takes to measure, where the rate is not of a run that did it."""
        from alm_pipeline.planning.speed.processor import scored_per_second

        student = self.pipeline.config.student
        if stage != "train" or student.tokenizer is None or student.level == "none":
            return 0.0
        parameters = parameter_count(self.pipeline.source)
        if parameters is None or find_rate(work_of(self.pipeline, stage)):
            return 0.0
        return ROUNDS * TOKENS / scored_per_second(parameters, "float32")

    @property
    def _read_share(self) -> float:
        # reading a corpus takes as long for a sample of it as for the whole
        return read_share(self.pipeline)

    def _given_rate(self, stage: Stage) -> float | None:
        return {"score": self.rates.score, "train": self.rates.train}.get(stage) or self.rates.measured.get(stage)

    def _rate(self, stage: Stage) -> float | None:
        if given := self._given_rate(stage):
            return given
        if stage == "shard" and self.sample:
            return self.sample.read_bytes_per_second
        return find_rate(work_of(self.pipeline, stage)) or self._tried_rate(stage) or self._probed_rate(stage)

    def _tried_rate(self, stage: Stage) -> float | None:
        """Return the rate at which the sample went through the stage, or a documented one."""
        if stage == "train tokenizer":
            return TRAINED_BYTES_PER_S
        if self.trial is None or stage not in self.trial.seconds:
            return None
        units = sum(self.trial.tokens.values()) if stage == "align" else 1.0
        return rate_of(stage, self.trial.text_bytes * units, self.trial.seconds[stage])

    def _probed_rate(self, stage: Stage) -> float | None:
        """Return the rate of a model that this machine has never run, by how fast it multiplies matrices."""
        from alm_pipeline.planning.speed.processor import scored_per_second, trained_per_second

        config = self.pipeline.config
        parameters = parameter_count(self.pipeline.teacher if stage == "score" else self.pipeline.source)
        if parameters is None:
            return None
        if stage == "score":
            return scored_per_second(parameters, config.score.dtype)
        return trained_per_second(parameters, config.train.dtype, config.train.processes) if stage == "train" else None

    def is_probed(self, stage: Stage) -> bool:
        """Whether the stage's rate is only that of matrix products."""
        is_modeled = stage in ("score", "train") and not self._given_rate(stage)
        return is_modeled and find_rate(work_of(self.pipeline, stage)) is None

    @cached_property
    def student_bytes(self) -> Amount | None:
        """What the student takes in the store."""
        parameters = parameter_count(self.pipeline.source)
        setting = self.pipeline.config.train.save_dtype
        dtype = self.pipeline.source.weights_dtype if setting == "source" else setting
        return parameters and Amount(value=parameters * DTYPE_BYTES[dtype])  # type: ignore[return-value]


def read_share(pipeline: Pipeline) -> float:
    """Return the share of the texts that are read which become examples."""
    corpus = pipeline.config.texts
    return corpus.sample if corpus.max_examples is None else 1.0


def work_of(pipeline: Pipeline, stage: Stage) -> Work:
    """Return what decides how fast a stage of the pipeline is on this machine."""
    config = pipeline.config
    match stage:
        case "tokenize teacher":
            return Work(stage="tokenize", model=pipeline.teacher.tokenizer.identity)
        case "tokenize student":
            return Work(stage="tokenize", model=_student_tokenizer_identity(pipeline))
        case "score":
            settings = config.score.model_dump(mode="json", include={"dtype", "window", "top_k", "device_map"})
            if config.score.engine != "transformers":
                settings |= {"engine": config.score.engine}
            return _model_work(stage, pipeline.teacher, settings)
        case "train":
            computation = {"steps", "seed", "learning_rate", "learning_rates", "warmup_steps", "schedule"}
            settings = config.train.model_dump(mode="json", exclude=computation)
            settings |= {"terms": dict(config.objective.terms), "student": config.student.model_dump(mode="json")}
            return _model_work(stage, pipeline.source, settings)
        case "train tokenizer" | "shard" | "align" | "pair biases":
            return Work(stage=stage)


def _model_work(stage: str, model: ModelReference, settings: dict[str, object]) -> Work:
    from alm_pipeline.models.loading import all_devices

    return Work(
        stage=stage,
        model=model.identity,
        parameters=parameter_count(model),
        settings=fingerprint(settings),
        devices=all_devices(),
    )


def _student_tokenizer_identity(pipeline: Pipeline) -> str:
    try:
        return pipeline.student_tokenizer.identity
    except UserError:  # it has yet to be made
        return ""


def parameter_count(model: ModelReference) -> int | None:
    """Return about how many weights a model has, by the size of its files; None if they are not on this machine."""
    if is_on_hub(model.name) and "folder" not in vars(model):
        return None
    size = sum(file.stat().st_size for file in model.folder.glob("*.safetensors"))
    return size // DTYPE_BYTES[model.weights_dtype] or None


def record_rates(pipeline: Pipeline, left: dict[Stage, float], seconds: dict[str, float]) -> None:
    """Record how long the stages of a run took. `left` is what each had to do, `seconds` what it took.

    Of a mixture, whose sources have teachers and columns of their own, only the training is recorded.
    """
    for stage in ("train",) if pipeline.config.is_mixture else STAGES:
        amount, took = left.get(stage, 0.0), seconds.get(stage, 0.0)
        if amount and took:
            work = amount / read_share(pipeline) if stage == "shard" else amount
            record_rate(work_of(pipeline, stage), work, took)
