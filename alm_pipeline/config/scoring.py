"""How the teacher scores."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alm_pipeline.config.frozen import Frozen

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""of a weight of each dtype"""


class ScoreConfig(Frozen):
    """How the teacher scores."""

    dtype: Dtype = Field("bfloat16", description="The dtype of the teacher's weights and of its forward pass.")
    mantissa_bits: int = Field(
        10,
        ge=4,
        le=23,
        description="The mantissa bits that float32 scores are rounded to, so that they compress. 10 bits (as in "
        "float16) take 3.9 bytes per token and change the ALM loss by less than a millionth, a quarter of the rounding "
        "of a teacher in bfloat16; 15 bits take 5.0 bytes, for a teacher in float32; 7 bits (as in bfloat16) take 2.9 "
        "bytes and change the loss by up to 2e-5; 23 bits round nothing and take 6.6 bytes.",
    )
    window: int | None = Field(
        None,
        ge=4,
        description="The maximum number of tokens that the teacher sees at once. Longer examples are scored in "
        "overlapping windows. Default, and upper limit: the teacher's context length.",
    )
    context: int | None = Field(
        None,
        ge=1,
        description="With several windows: the minimum number of tokens of the example before each scored token within "
        "its window (fewer only at the example's beginning). At most `window` - 2. Default: half the window.",
    )
    top_k: int = Field(
        0,
        ge=0,
        le=64,
        description="The number of likeliest next tokens, with their log-probabilities, to store for each token "
        "besides the scores. Default: none.",
    )
    batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens per forward pass, including padding. Halved automatically when memory runs out. Default: "
        "4096 on a processor; on a GPU, 4096 doubled as long as its memory allows, up to 65536.",
    )
    compile: bool = Field(
        False,
        description="Compile the teacher's layers with torch.compile: takes a minute at the start, and changes scores "
        "only by rounding.",
    )
    devices: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Devices such as `cuda:0`, each with a copy of the teacher; the copies take shards in turn. "
        "Default: every GPU, or the CPU.",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="How accelerate spreads one teacher over all GPUs, memory and disk, for a teacher too large for "
        "one GPU. Default: not spread. Excludes `devices`.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.window and self.context and self.context > self.window - 2:
            raise ValueError(f"context {self.context} leaves no room in a window of {self.window}: at most window - 2")
        if self.devices and self.device_map:
            raise ValueError("devices is for copies of the teacher, device_map for one teacher: set only one of them")
        return self

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores.

        Where and how they are computed, and how many tokens at once, changes them only by rounding (sums in another
        order): if runs differ in this, the first to publish a shard wins.
        """
        undecisive = {"batch_tokens", "compile", "devices", "device_map"}
        return self.model_dump(mode="json", exclude=undecisive if self.top_k else {*undecisive, "top_k"})
