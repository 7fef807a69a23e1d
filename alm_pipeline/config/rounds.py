"""On-policy rounds: what the student writes, and how it is trained on it."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from alm_pipeline.config.fields.places import PlaceUrl
from alm_pipeline.config.frozen import SEEDS, STORED, Frozen, Real
from alm_pipeline.config.objective import ObjectiveConfig
from alm_pipeline.config.scoring import Dtype

Start = Literal["student", "model"]
WritingEngine = Literal["transformers", "vllm"]


class SamplingConfig(Frozen):
    """How a model writes."""

    max_tokens: int = Field(
        256, ge=1, description="The most tokens that the model writes after a prompt. A text that is cut here is kept."
    )
    temperature: Real = Field(
        1.0, ge=0, description="The number that logits are divided by. 0 always takes the likeliest token."
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Draw from the fewest likeliest tokens whose probabilities sum to this. Default: from all.",
    )
    top_k: int | None = Field(None, ge=1, description="Draw from this number of likeliest tokens. Default: from all.")
    seed: int = Field(
        0,
        ge=0,
        lt=SEEDS,
        description="The seed. Every text has random numbers of its own, made of it, the round and the prompt's id.",
    )
    dtype: Dtype = Field("float32", description="The dtype that a model in this process writes in.")
    at_once: int = Field(
        16, ge=1, description="Texts that are written at a time; for a server, requests in flight. It decides no text."
    )
    engine: WritingEngine = Field(
        "transformers",
        description="What runs a model that writes in this process: `transformers`, or `vllm`, where that is "
        "installed in the same environment. Each writes texts of its own, from the same seeds.",
    )
    vllm_arguments: tuple[str, ...] = Field(
        (),
        description="With `engine: vllm`: further arguments of `vllm serve`, such as `--gpu-memory-utilization=0.5`.",
    )

    @model_validator(mode="after")
    def _draws(self, info: ValidationInfo) -> Self:
        given = [name for name, default in (("top_p", 1.0), ("top_k", None)) if getattr(self, name) != default]
        if self.temperature == 0 and given and info.context != STORED:
            raise ValueError(f"{given[0]}: is not used, as temperature 0 draws nothing: leave it out")
        return self

    @model_validator(mode="after")
    def _arguments_are_for_vllm(self) -> Self:
        if self.vllm_arguments and self.engine != "vllm":
            raise ValueError("vllm_arguments: are for the engine vllm: set engine to vllm, or leave them out")
        return self

    def identity(self) -> dict[str, Any]:
        """Return what decides the texts. Without an engine, they are those of transformers."""
        apart = {"engine", "vllm_arguments"} if self.engine == "transformers" else set()
        return self.model_dump(mode="json", exclude={"at_once", *apart})


class PromptsConfig(Frozen):
    """What a model continues: what comes before the last answer or the completion, or the beginning of a text."""

    text_bytes: int = Field(
        64,
        ge=1,
        description="Of plain texts: the bytes of the beginning that is the prompt, cut before white space; at most "
        "half of a text.",
    )
    per_shard: int = Field(
        128, ge=1, description="Prompts per shard: the most that is written again after an interruption."
    )


class RoundsConfig(Frozen):
    """On-policy rounds: in each, the student writes, the teacher scores what it wrote, and the student is trained."""

    count: int = Field(3, ge=1, description="The number of rounds.")
    start: Start = Field(
        "student",
        description="What the first round goes on from. `student`: the student that this configuration makes without "
        "rounds. `model`: the model `student.model` as it is, if it keeps its tokenizer.",
    )
    prompts: PromptsConfig = Field(PromptsConfig(), description="What the student continues.")
    per_round: int = Field(
        1000,
        ge=1,
        description="Prompts per round, drawn anew for each from the examples that are trained on; all, if there are "
        "no more.",
    )
    held_out: int = Field(
        100, ge=1, description="Held-out prompts that every student is measured on, the same in all rounds."
    )
    mix: float = Field(
        0.5,
        gt=0,
        le=1,
        description="The share λ of a round's examples that the student wrote; the others come from the corpus. At 1 "
        "nothing holds the student back from what is left out of its texts, such as bytes that are not UTF-8.",
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="How the student writes.")
    objective: ObjectiveConfig | None = Field(
        None,
        description="What the student is trained to match in a round, such as `{divergence: reverse_binary_kl}`. "
        "Default: the run's own objective.",
    )
    steps: int | None = Field(
        None, ge=1, description="Training steps per round, a tenth of them to warm up at most. Default: `train.steps`."
    )
    learning_rate: Real | None = Field(
        None, gt=0, description="The peak learning rate in a round. Default: `train.learning_rate`."
    )
    tasks: tuple[str, ...] = Field(
        (),
        description="Tasks of lm-evaluation-harness that every student is measured on, such as `gsm8k`. Default: none.",
    )
    task_folder: PlaceUrl | None = Field(None, description="A folder with YAML files of your own tasks. Default: none.")
    task_limit: int | None = Field(None, ge=1, description="Questions per task, from the first. Default: all.")
