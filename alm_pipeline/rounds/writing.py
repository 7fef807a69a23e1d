"""Texts that a teacher, a student or a served model writes on a corpus's prompts, to train on: `alm write`.

Trained on with `sft`, text of the teacher is sequence-level distillation (Kim and Rush 2016).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from alm_pipeline.config import AlmConfig, PromptsConfig, SamplingConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.phases import Phase
from alm_pipeline.provenance import provenance
from alm_pipeline.rollouts.endpoint import Endpoint
from alm_pipeline.rollouts.endpoint_writer import EndpointWriter
from alm_pipeline.rollouts.prompts import PromptChoice
from alm_pipeline.rollouts.stage import Writer, rollouts_dataset, write_rollouts
from alm_pipeline.rollouts.vllm_writer import model_writer
from storage.dataset import Dataset, Manifest
from storage.errors import UserError


@dataclass(frozen=True)
class WriterChoice:
    """Who writes."""

    by: str
    """`teacher`, `student` (the model that the configuration begins with), or the URL of an endpoint up to `/v1`"""
    model: str | None = None
    """the name that the endpoint knows the model by"""
    revision: str | None = None
    """distinguishes states of a served model that share its name"""

    def __post_init__(self) -> None:
        """Raises UserError if what is named does not go together."""
        is_endpoint = self.by not in ("teacher", "student")
        if is_endpoint and not self.by.startswith(("http://", "https://")):
            raise UserError(
                f"{self.by}: can't write: name teacher, student, or the URL of a server, http://host:port/v1"
            )
        if is_endpoint and not self.model:
            raise UserError(f"{self.by}: name the model as the server knows it (--model NAME)")
        if not is_endpoint and (self.model or self.revision):
            raise UserError(
                f"{self.by}: is the configuration's own; model and revision are for a server: leave them out"
            )

    def writer(self, run: Pipeline, sampling: SamplingConfig) -> Writer:
        """Return the writer for one source of a corpus."""
        if self.by == "teacher":
            return model_writer(run.teacher, sampling)
        if self.by == "student":
            return model_writer(run.source, sampling)
        return EndpointWriter(Endpoint(self.by), self.model or "", sampling, self.revision)


@dataclass(frozen=True)
class Writing:
    """One model writes on prompts of a configuration's corpus; `rounds` says how, where it is set."""

    config: AlmConfig
    root: str
    chosen: WriterChoice
    prompts: int | None = None
    """how many of the examples that are trained on (None: all)"""
    held_out: int | None = None

    @cached_property
    def run_before(self) -> Pipeline:
        """The run that makes the examples."""
        return Pipeline(self.config.model_copy(update={"rounds": None}), self.root)

    @property
    def sampling(self) -> SamplingConfig:
        return self.config.rounds.sampling if self.config.rounds else SamplingConfig()

    @property
    def _prompts(self) -> PromptsConfig:
        return self.config.rounds.prompts if self.config.rounds else PromptsConfig()

    def require_ready(self) -> None:
        """Raise UserError with what would stop the preparation of the prompts."""
        phases: list[Phase] = ["prepare"]
        self.run_before.require_ready(phases)

    def prepare(self) -> None:
        """Make the examples whose beginnings are the prompts. Raises UserError with what is wrong."""
        self.require_ready()
        self.run_before.train_tokenizer()
        for part in self.run_before.parts:
            part.shard()

    def write(self) -> list[Manifest]:
        """Write what is missing, for each source of the corpus."""
        self.prepare()
        return list(map(self._write, self.run_before.parts))

    def _write(self, part: Pipeline) -> Manifest:
        writer = self._writer(part)
        written = write_rollouts(self._dataset(part), part.examples, writer, self._prompts, self._choice, "write")
        writer.release()  # two teachers are never in memory together
        return written

    @property
    def datasets(self) -> Sequence[Dataset]:
        """What is written, for each source of the corpus."""
        return [self._dataset(part) for part in self.run_before.parts]

    @property
    def _choice(self) -> PromptChoice:
        return PromptChoice(self.prompts, self.held_out, self.sampling.seed, 0)

    def _dataset(self, part: Pipeline) -> Dataset:
        found = rollouts_dataset(part.examples, self._writer(part), self._prompts, self.sampling, self._choice)
        return replace(found, provenance=provenance(self.config))

    def _writer(self, part: Pipeline) -> Writer:
        return self.chosen.writer(part, self.sampling)
