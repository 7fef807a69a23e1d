"""Whether a fast engine gives the ids of the standard one, on texts that do not depend on a corpus."""

from collections.abc import Iterable, Sequence

import numpy as np

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.standard import Engine
from alm_pipeline.vocabulary.byte_view import ByteView

_BATCH = 4096
_TEXT_CHARACTERS = 80


class DifferentIds(ValueError):
    """An engine gives other ids than the standard one."""


def difference(engine: Engine, text: str) -> str:
    """Return the sentence that an engine encodes a text differently."""
    return f"{engine.name} gives different ids for {text[:_TEXT_CHARACTERS]!r}"


def first_difference(
    engine: Engine, standard: Engine, *, special_literals: bool, texts: Sequence[str] = ADVERSARIAL_TEXTS
) -> str | None:
    """Return the first of the texts to which the two engines give different ids, or None."""
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        ids, standard_ids = (either.encode(batch, special_literals=special_literals) for either in (engine, standard))
        if (index := ids.first_difference(standard_ids)) is not None:
            return batch[index]
    return None


def token_texts(view: ByteView) -> list[str]:
    """Return what the ordinary tokens spell, as texts. Of a part of a character, only the whole characters in it."""
    spellings: Iterable[bytes] = (view.spelling[id_] for id_ in np.flatnonzero(~view.special).tolist())
    return list(dict.fromkeys(filter(None, (spelling.decode(errors="ignore") for spelling in spellings))))
