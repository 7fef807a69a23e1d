"""Prompts with completions: where the completion begins in what a document was cut into.

A prompt is context and not learned. A document that is too long is cut like any other: its later pieces begin within
the completion, and a piece that is only prompt has nothing to learn.
"""

from collections.abc import Sequence

from alm_pipeline.conversations.sections import Messages
from alm_pipeline.corpus.documents import Document

Piece = tuple[str | None, Messages | None]
"""A text or a conversation."""


def completions_of(document: Document, pieces: Sequence[Piece]) -> list[int | None]:
    """Return where the completion begins in each piece of a document: a byte or a message; None if all is learned.

    A text's pieces concatenate to it; a conversation's hold the document's own messages.
    """
    if document.completion_at is None:
        return [None] * len(pieces)
    if document.messages is not None:
        completion = {id(message) for message in document.messages[document.completion_at :]}
        return [sum(id(message) not in completion for message in messages or []) for _, messages in pieces]
    places: list[int | None] = []
    start = 0
    for text, _ in pieces:
        size = len((text or "").encode())
        places.append(min(max(document.completion_at - start, 0), size))
        start += size
    return places
