"""How the student is trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alm_pipeline.config.frozen import Frozen


class LoraConfig(Frozen):
    """Adapters of a low rank on linear layers, trained with the embeddings while everything else stays as it is."""

    rank: int = Field(64, gt=0)
    alpha: float = Field(64, gt=0, description="what an adapter adds is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into an adapter")
    targets: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="patterns of the names of linear layers that get an adapter, such as '*.self_attn.*'; the output "
        "layer gets none: it is trained itself",
    )


class TrainConfig(Frozen):
    """How the student is trained."""

    steps: int = Field(1000, ge=0)
    batch_tokens: int = Field(16_384, gt=0, description="student tokens a batch, padding included")
    accumulation: int = Field(
        1, gt=0, description="batches a step: one after the other, or shared equally by several processes"
    )
    row_tokens: int = Field(2048, gt=0, description="length of a packed row; a longer example gets a row alone")
    learning_rate: float = Field(1e-5, gt=0)
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="of parameters whose names match a pattern, such as {'*embed_tokens*': 1e-4}; the first one counts",
    )
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "wsd"] = Field(
        "linear",
        description="of the rate after the warm-up: down to 0 in a straight line or half a cosine; wsd keeps it, and "
        "goes down in a straight line over the last `decay_steps`",
    )
    decay_steps: int | None = Field(None, gt=0, description="of the schedule wsd; a tenth of the steps by default")
    freeze: tuple[str, ...] = Field((), description="patterns of parameters that stay as they are: '*.mlp.*'")
    lora: LoraConfig | None = Field(
        None, description="train adapters and the embeddings; by default everything is trained. {} takes the defaults"
    )
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 does not clip")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 is autocast over float32 weights")
    save_dtype: Literal["source", "float32", "bfloat16", "float16"] = Field(
        "source", description="of the student's weights as stored; source: as those that it was made from"
    )
    seed: int = 0
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the student is a moving average of the weights, which keeps this share a step (after t steps at "
        "most (1 + t) / (10 + t)): 0.999",
    )
    checkpoint_steps: int = Field(100, gt=0)
    keep_checkpoints: int = Field(1, gt=0, description="the newest so many")
    diverged_at: float | None = Field(
        None, gt=1, description="stop where the loss is so many times its mean over the last 100 steps; null: never"
    )
    shuffle_buffer: int = Field(10_000, ge=1, description="examples")
    processes: int | None = Field(
        None,
        gt=0,
        description="on this machine, each with a GPU, sharing the batches of a step; by default as many as there are "
        "GPUs and as divide `accumulation`",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp splits weights, gradients and the optimizer's state between the processes (FSDP2)"
    )
    activation_checkpointing: bool = Field(
        False, description="keep the layers' inputs alone, and compute the rest again for the gradients: less memory"
    )
    compile: bool = Field(False, description="torch.compile each layer")
    attention: str | None = Field(
        None,
        description="as transformers calls it: sdpa, eager, flash_attention_2, flex_attention, …; by default the "
        "model's own",
    )

    @model_validator(mode="after")
    def _decays_in_time(self) -> Self:
        if self.decay_steps and self.schedule != "wsd":
            raise ValueError(f"decay_steps is of the schedule wsd, and this is {self.schedule}: leave one of them out")
        if self.warmup_steps + (self.decay_steps or 0) > max(self.steps, self.warmup_steps):
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} are more than steps {self.steps}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the student.

        How its step is computed moves it by no more than rounding (sums in another order).
        """
        computing = {"processes", "sharding", "activation_checkpointing", "compile", "attention"}
        watching = {"checkpoint_steps", "keep_checkpoints", "diverged_at"}
        return self.model_dump(mode="json", exclude=computing | watching)
