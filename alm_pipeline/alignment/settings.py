"""What a configuration decides of alignments: which parts of the turns are learned, and what one-sided bytes do.

None of it changes tokens or scores, and aligning takes seconds, so that it can be chosen again at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from alm_pipeline.config import LEARNED_PARTS, AlmConfig, LearnedPart, LearnedTurns, OneSided


@dataclass(frozen=True)
class AlignmentSettings:
    """The settings of a run that decide its alignments."""

    one_sided: OneSided = "keep"
    learn: tuple[LearnedPart, ...] = LEARNED_PARTS
    learned_turns: LearnedTurns = "all"

    @classmethod
    def of(cls, config: AlmConfig) -> Self:
        """Return a configuration's settings."""
        objective = config.objective
        return cls(config.texts.one_sided, objective.learn, objective.learned_turns)

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> Self:
        """Return the settings that an alignments dataset is identified by."""
        defaults = cls()
        return cls(
            identity.get("one_sided", defaults.one_sided),
            tuple(identity.get("learn", defaults.learn)),
            identity.get("learned_turns", defaults.learned_turns),
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that are not the default: only these are part of a dataset's identity."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}
