"""How the student is trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from alm_pipeline.config.frozen import SEEDS, STORED, Frozen, Real
from alm_pipeline.config.scoring import Dtype

Schedule = Literal["linear", "cosine", "wsd"]
ComputationDtype = Literal["float32", "bfloat16"]
Sharding = Literal["none", "fsdp"]


class LoraConfig(Frozen):
    """Low-rank adapters on linear layers; adapters and embeddings are trained, everything else stays fixed."""

    rank: int = Field(64, gt=0, description="The rank of each adapter's two factors.")
    alpha: Real = Field(64, gt=0, description="The output of an adapter is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="The share of each adapter's inputs that dropout sets to 0.")
    targets: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="Patterns of the names of linear layers that get an adapter, such as `*.self_attn.*`. The output "
        "layer gets none, since it is trained itself. Default: all linear layers.",
    )


class TrainConfig(Frozen):
    """How the student is trained."""

    steps: int = Field(1000, ge=0, description="The number of optimizer steps. 0 saves the untrained student.")
    batch_tokens: int = Field(
        16_384,
        gt=0,
        description="Student tokens per batch, including padding. A step takes `accumulation` batches.",
    )
    accumulation: int = Field(
        1,
        gt=0,
        description="Batches per step. One process takes them one after the other; several processes share them "
        "equally.",
    )
    row_tokens: int = Field(
        2048,
        gt=0,
        description="The length of a packed row in student tokens. A longer example gets a row of its own; 1 gives "
        "every example its own row.",
    )
    learning_rate: Real = Field(1e-5, gt=0, description="The learning rate of AdamW after the warm-up.")
    learning_rates: dict[str, Annotated[Real, Field(gt=0)]] = Field(
        {},
        description="Other learning rates for the parameters whose names match a pattern, such as "
        "`{'*embed_tokens*': 1e-4}`. The first pattern that matches counts.",
    )
    warmup_steps: int = Field(
        0, ge=0, description="The number of steps in which the learning rate rises linearly from 0."
    )
    schedule: Schedule = Field(
        "linear",
        description="The learning rate after the warm-up. `linear` and `cosine` fall to 0 in a straight line or half a "
        "cosine; `wsd` stays constant and falls to 0 in a straight line over the last `decay_steps`.",
    )
    decay_steps: int | None = Field(
        None,
        gt=0,
        description="With the schedule `wsd`: the number of steps of its decay. Default: a tenth of `steps`.",
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="Patterns of the names of parameters that are not trained, such as `*.mlp.*`. Default: none.",
    )
    lora: LoraConfig | None = Field(
        None,
        description="Train low-rank adapters and the embeddings only; `{}` takes the adapters' default settings. "
        "Default: train all weights.",
    )
    weight_decay: Real = Field(0.0, ge=0, description="The weight decay of AdamW. Default: none.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients with a larger norm are scaled down to this norm. 0 disables clipping."
    )
    dtype: ComputationDtype = Field(
        "float32",
        description="The dtype of the computation. `bfloat16` is autocast: the weights themselves stay in float32.",
    )
    save_dtype: Literal["source"] | Dtype = Field(
        "source",
        description="The dtype of the saved student's weights. `source` is the dtype of the model that it was made "
        "from.",
    )
    seed: int = Field(
        0, ge=0, lt=SEEDS, description="The seed of everything random: the order of examples, dropout, new weights."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Make the student an exponential moving average of the weights, which keeps this share of itself "
        "at each step (after t steps at most (1 + t) / (10 + t)), for example 0.999. Default: no average.",
    )
    checkpoint_steps: int = Field(
        100, gt=0, description="Steps between two checkpoints, from which a killed run resumes."
    )
    keep_checkpoints: int = Field(
        1,
        gt=0,
        description="The number of newest checkpoints to keep during training; all are deleted when it is finished.",
    )
    diverged_at: float | None = Field(
        None,
        gt=1,
        description="Stop when the loss exceeds this multiple of its mean over the last 100 steps. Default: never.",
    )
    shuffle_buffer: int = Field(
        10_000, ge=1, description="The number of examples in memory that examples are shuffled with."
    )
    processes: int | None = Field(
        None,
        gt=0,
        description="The number of training processes on this machine, each with a GPU; they share the batches of a "
        "step. Default: the largest number that is at most the number of GPUs and divides `accumulation`.",
    )
    sharding: Sharding = Field(
        "none",
        description="`fsdp` (FSDP2) splits weights, gradients and optimizer state between the processes; `none` keeps "
        "all of them in each process.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Keep only the inputs of each layer and recompute the rest for the gradients: less memory, more "
        "time.",
    )
    compile: bool = Field(False, description="Compile each layer with torch.compile.")
    attention: str | None = Field(
        None,
        description="The attention implementation, as transformers names it: `sdpa`, `eager`, `flash_attention_2`, "
        "`flex_attention`, …. Default: the model's own default.",
    )

    @model_validator(mode="after")
    def _warms_up_in_time(self, info: ValidationInfo) -> Self:
        if 0 < self.steps <= self.warmup_steps and info.context != STORED:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} would leave none of the {self.steps} steps with the whole learning "
                f"rate: set train.warmup_steps to less, such as {self.steps // 10}, or train.steps to more"
            )
        return self

    @model_validator(mode="after")
    def _decays_in_time(self) -> Self:
        if self.decay_steps and self.schedule != "wsd":
            raise ValueError(
                f"decay_steps belongs to schedule wsd, but schedule is {self.schedule}: remove one of them"
            )
        if self.warmup_steps + (self.decay_steps or 0) > max(self.steps, self.warmup_steps):
            raise ValueError(
                f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} exceed steps {self.steps}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return what decides the student.

        How a step is computed changes the student only by rounding (sums in another order).
        """
        computation = {"processes", "sharding", "activation_checkpointing", "compile", "attention"}
        supervision = {"checkpoint_steps", "keep_checkpoints", "diverged_at"}
        return self.model_dump(mode="json", exclude=computation | supervision)
