"""What every configuration model has in common."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A configuration that refuses misspelt fields and later changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
