"""Literals of special tokens in a message's content: what a user typed is text, not a token of the template.

`tokenizers` reads every literal in a rendered conversation as the special token. If a content has one, the text between
the template's own special tokens is encoded again, as text only.
"""

from itertools import chain

import numpy as np
import numpy.typing as npt

from alm_pipeline.tokenization.chat.template import RenderedConversation
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.tokenization.spans import Spans
from alm_pipeline.vocabulary.byte_view import ByteView
from storage.schemas import TokenKind

Ids = npt.NDArray[np.int32]


def typed_literals(view: ByteView, rendering: RenderedConversation, ids: Ids, spans: Spans) -> npt.NDArray[np.bool_]:
    """Return the mask [tokens] of special tokens whose literal is in a content, with any white space they absorb."""
    parts = [
        np.searchsorted(rendering.ends, at, side="right").clip(max=len(rendering.ends) - 1)
        for at in (spans.starts, spans.ends - 1)
    ]
    inside = [rendering.kinds[part] == TokenKind.CONTENT for part in parts]
    typed: npt.NDArray[np.bool_] = (
        view.special[ids] & inside[0] & inside[1] & (rendering.turns[parts[0]] == rendering.turns[parts[1]])
    )
    return typed


def encode_around(
    engine: StandardEngine, text: bytes, ids: Ids, spans: Spans, kept: npt.NDArray[np.bool_]
) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Encode the stretches between these special tokens as text.

    Returns the ids, and a mask of the special tokens that were kept.
    """
    cuts = np.flatnonzero(kept)
    edges = zip(np.insert(spans.ends[cuts], 0, 0), np.append(spans.starts[cuts], len(text)), strict=True)
    bodies = engine.encode_stretches([text[start:end].decode() for start, end in edges])
    joined = [
        *chain.from_iterable([*body, int(id_)] for body, id_ in zip(bodies, ids[cuts], strict=False)),
        *bodies[-1],
    ]
    lengths = np.cumsum([len(body) + 1 for body in bodies[:-1]], dtype=np.int64)
    in_place = np.zeros(len(joined), dtype=bool)
    in_place[lengths - 1] = True
    return np.array(joined, dtype=np.int32), in_place
