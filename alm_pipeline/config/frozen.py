"""The base class of every configuration model."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A configuration that refuses misspelled fields and later changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
