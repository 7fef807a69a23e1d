"""How the teacher scores."""

from typing import Any, Literal

from pydantic import Field, model_validator

from alm_pipeline.config.frozen import Frozen

Dtype = Literal["float32", "bfloat16", "float16"]


class ScoreConfig(Frozen):
    """How the teacher scores."""

    dtype: Dtype = "bfloat16"
    mantissa_bits: int = Field(
        15,
        ge=4,
        le=23,
        description="scores are float32 rounded to so many bits, so that they compress: 15 take 5.0 bytes a token and "
        "move the ALM loss by under 1e-6 of it, 10 (float16's) 3.9 bytes and as little, 7 (bfloat16's) 2.9 and up "
        "to 2e-5; 23 rounds nothing and takes 6.6",
    )
    window: int | None = Field(
        None,
        ge=4,
        description="the most tokens that the teacher sees at once; longer examples are scored in windows that "
        "overlap. By default, and at most, the teacher's context",
    )
    context: int | None = Field(
        None,
        ge=1,
        description="so many tokens of an example, at least, stand in the window before each token that has as many "
        "before it; half the window by default",
    )
    top_k: int = Field(0, ge=0, le=64, description="the likeliest tokens after each token, stored beside the scores")
    batch_tokens: int = Field(
        4096, gt=0, description="tokens a forward pass, padding included; halved where memory does not suffice"
    )
    devices: tuple[str, ...] | None = Field(
        None, min_length=1, description="a copy of the teacher on each, taking shards in turn; by default on every GPU"
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="one teacher over all GPUs, memory and disk, as accelerate puts it: for one too large for a GPU",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "ScoreConfig":
        if self.window and self.context and self.context > self.window - 2:
            raise ValueError(f"context {self.context} leaves no room in a window of {self.window}: at most window - 2")
        if self.devices and self.device_map:
            raise ValueError("devices are for copies of the teacher, device_map is for one teacher: set one of them")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the scores.

        Where they are computed, and how many tokens at once, moves them by no more than rounding (sums in another
        order): of runs that differ in it, the first to publish a shard wins.
        """
        elsewhere = {"batch_tokens", "devices", "device_map"}
        return self.model_dump(mode="json", exclude=elsewhere if self.top_k else {*elsewhere, "top_k"})
