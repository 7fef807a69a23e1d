"""The sections of a shard's conversations: their roles and sizes, and which of them are learned.

A section is one kind of content of one message: what the assistant thinks, what it answers, the tools that it calls;
any other message is one section. A plain text is a single section, of the role `text`.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.config import LearnedPart
from alm_pipeline.conversations.sections import ASSISTANT, REASONING, TOOL_CALLS
from storage.columns import flatten_lists
from storage.schemas import COMPLETION

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TEXT = "text"
"""the role of a plain text"""
_USER = "user"
PART_ROLES: dict[LearnedPart, frozenset[str]] = {
    "answer": frozenset({ASSISTANT, COMPLETION}),
    "tool_calls": frozenset({TOOL_CALLS}),
    "reasoning": frozenset({REASONING}),
}
"""the roles of the sections that each part of an assistant's turn consists of"""


@dataclass(frozen=True)
class Sections:
    """The S sections of a shard's N examples, in order. An example without any is a plain text, or was dropped."""

    offsets: Int64s
    """[N + 1] where each example's sections begin"""
    names: list[str]
    """the distinct roles"""
    places: Int64s
    """[S] the place of each section's role among them"""
    bytes: Int64s
    """[S] of the example's text"""

    @classmethod
    def of(cls, tokens: pa.Table) -> "Sections":
        """Return the sections of one side's tokens: of the examples that have tokens on that side."""
        sizes, offsets = flatten_lists(tokens["turn_bytes"])
        roles = tokens["roles"].combine_chunks().flatten().dictionary_encode()
        assert len(roles) == len(sizes), "an example has other numbers of roles and of sizes of turns"
        places = roles.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(offsets, roles.dictionary.to_pylist(), places, sizes.astype(np.int64))

    @classmethod
    def of_texts(cls, sizes: Int64s) -> "Sections":
        """Return the sections of plain texts of these sizes [N] in bytes: one each."""
        return cls(np.arange(len(sizes) + 1), [TEXT], np.zeros(len(sizes), np.int64), sizes)

    @property
    def examples(self) -> Int64s:
        """[S] the number of each section's example."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def are(self, roles: Collection[str]) -> Bools:
        """Return whether each section [S] is of one of these roles."""
        return np.array([name in roles for name in self.names], np.bool_)[self.places]


def learned_sections(sections: Sections, settings: AlignmentSettings) -> Bools:
    """Return which sections [S] are learned: the chosen parts of the assistant's turns, or of the last ones."""
    roles = frozenset[str]().union(*(PART_ROLES[part] for part in settings.learn))
    learned = sections.are(roles)
    match settings.learned_turns:
        case "all":
            return learned
        case "last":
            return learned & _after_the_last_question(sections)


def _after_the_last_question(sections: Sections) -> Bools:
    """Return whether each section [S] comes after the last user's message of its conversation."""
    after: Bools = np.arange(len(sections.places)) > _last(sections, _USER)[sections.examples]
    return after


def _last(sections: Sections, role: str) -> Int64s:
    """Return the last section of a role of each example [N]; -1 where it has none."""
    places = np.flatnonzero(sections.are({role}))
    last = np.full(len(sections.offsets) - 1, -1, np.int64)
    last[sections.examples[places]] = places  # of several, the last is kept
    return last
