"""Which network predicts embeddings, and how large it is."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alm_pipeline.config import Frozen

NetworkKind = Literal["low_rank", "transformer"]


class NetworkConfig(Frozen):
    """The network that predicts the embeddings of new tokens from those of their pieces."""

    kind: NetworkKind = Field(
        "low_rank",
        description="`low_rank`: a linear map of low rank of the first, the last and the mean of the pieces, with a "
        "gain and an offset per channel. `transformer`: a transformer encoder over the pieces, as published; it has "
        "about thirty times as many parameters, and is meant for GPUs.",
    )
    rank: int = Field(128, ge=1, description="With `low_rank`: the rank of the map.")
    layers: int = Field(3, ge=1, description="With `transformer`: the number of layers.")
    width: int | None = Field(
        None,
        ge=8,
        description="With `transformer`: the width of the layers, a multiple of the number of heads, which have 64 "
        "channels each. Default: the model's hidden size.",
    )
    pieces: int = Field(
        8,
        ge=2,
        description="With `transformer`: the most pieces of a token that are read; further ones count only in "
        "their mean.",
    )

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        of_others = ("layers", "width", "pieces") if self.kind == "low_rank" else ("rank",)
        for name in of_others:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: is not used, as the network {self.kind} has none: leave it out")
        return self
