"""What a server with the plugin alm-scores has to know of the teacher, as a file. Without torch.

The plugin (`plugins/alm-scores`) reads the file, and a code in each of its replies says which file it has read.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.vocabulary.byte_view import check_vocabulary
from storage.errors import UserError
from storage.local.files import write_file

FORMAT = 1
CARRIERS = 3
_NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})


@dataclass(frozen=True)
class ServedVocabulary:
    """Which ids of the teacher's logits are tokens, which are boundaries, and which carry the plugin's numbers."""

    model: str
    tokenizer: str
    """a hash of the tokens' bytes; ids are sent, so how a text is cut into tokens does not matter"""
    rows: int
    """the ids that are tokens; the model's further ids are padding, and impossible"""
    width: int
    """the number of logits of the model"""
    boundary_ids: tuple[int, ...]
    carriers: tuple[int, ...]
    """three ids that no text uses, if there are any: 1 − log P(boundary), the code, and the least number"""

    @classmethod
    def of(cls, teacher: ModelReference) -> "ServedVocabulary":
        """Raises UserError if the tokenizer is not the model's, or the vocabulary has no boundary token."""
        tokenizer, width = teacher.tokenizer, teacher.vocabulary_rows
        check_vocabulary(tokenizer.view, width, tokenizer.name)
        boundary_ids = tokenizer.boundary_ids[tokenizer.boundary_ids < width]
        if not len(boundary_ids):
            raise UserError(f"{teacher.name}: its vocabulary has no boundary token: set score.engine to transformers")
        carriers = tuple(islice(_carriers(tokenizer, width), CARRIERS))
        return cls(
            teacher.label,
            _spelling_hash(tokenizer),
            min(width, tokenizer.view.size),
            width,
            tuple(boundary_ids.tolist()),
            carriers,
        )

    @cached_property
    def content(self) -> dict[str, Any]:
        """The fields of the file, with their hash."""
        names = ("model", "tokenizer", "rows", "width", "boundary_ids", "carriers")
        fields = {"format": FORMAT, **{name: getattr(self, name) for name in names}}
        return {**fields, "hash": hashlib.sha256(_compact(fields).encode()).hexdigest()}

    @property
    def hash(self) -> str:
        return str(self.content["hash"])

    @cached_property
    def is_boundary(self) -> npt.NDArray[np.bool_]:
        """[width] the mask of the boundary tokens."""
        mask = np.zeros(self.width, dtype=bool)
        mask[list(self.boundary_ids)] = True
        return mask

    def write(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        write_file(file, (_compact(self.content) + "\n").encode(), Path.replace)


def _spelling_hash(tokenizer: LoadedTokenizer) -> str:
    view = tokenizer.view
    parts = (view.lengths.astype("<i4").tobytes(), view.letters.tobytes(), np.packbits(view.special).tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _compact(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _carriers(tokenizer: LoadedTokenizer, width: int) -> Iterator[int]:
    """Yield ids for carriers, the least used first: padding, bytes that no text has, special tokens, rare tokens.

    A text that uses one is refused when it is scored.
    """
    view = tokenizer.view
    size, framing = min(view.size, width), {id_ for ids in tokenizer.frame for id_ in ids}
    never = [id_ for id_ in range(size) if _NEVER_IN_UTF8.intersection(view.spelling[id_])]
    special = [id_ for id_ in reversed(range(size)) if view.special[id_] and id_ not in framing]
    yield from dict.fromkeys([*reversed(range(size, width)), *never, *special, *reversed(range(size))])
