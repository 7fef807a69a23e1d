"""Which network predicts embeddings, and how large it is."""

from typing import Literal

from pydantic import Field

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
