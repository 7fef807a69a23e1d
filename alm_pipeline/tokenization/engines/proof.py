"""Whether a fast engine gives the ids of the standard one, on texts that do not depend on a corpus."""

import random
from collections.abc import Iterable, Sequence

import numpy as np

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.standard import Engine
from alm_pipeline.vocabulary.byte_view import ByteView

_BATCH = 4096
_TEXT_CHARACTERS = 80
_BESIDE = ("a", "Ab1", "_", "-", ".", " ", "  ", "\n", "\t\n", "\u00e9", "\u6771", " the ")
"""what an added token's literal may stand beside"""
_AROUND = (("a", "b"), (" ", " "), ("a ", " b"), ("\n", "\n"), (".", "."))
_MIXED_TEXTS = 2000


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


def added_token_texts(view: ByteView) -> list[str]:
    """Return texts with the literals of the added tokens: beside words, signs and white space, and beside each other.

    There a literal may absorb white space, or may have to be a word of its own. The last texts are drawn, always alike.
    """
    literals = list(
        dict.fromkeys(filter(None, (view.spelling[id_].decode(errors="ignore") for id_ in sorted(view.added))))
    )
    if not literals:
        return []
    alone = [f"{before}{literal}{after}" for literal in literals for before, after in (("", ""), *_AROUND)]
    pairs = list(zip(literals, [*literals[1:], literals[0]], strict=True))
    beside = [f"{left}{right}" for pair in pairs for left, right in (pair, pair[::-1])]
    draw = random.Random(0)
    lengths = (draw.randint(2, 8) for _ in range(_MIXED_TEXTS))
    drawn = ["".join(draw.choice(draw.choice((literals, _BESIDE))) for _ in range(length)) for length in lengths]
    return list(dict.fromkeys([*alone, *beside, *drawn]))
