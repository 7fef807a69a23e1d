"""Examples: pieces of documents with stable ids, sampled and split into training and held-out examples."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from alm_pipeline.config import CorpusConfig
from alm_pipeline.conversations.sections import Messages, joined_text, text_bytes, with_texts
from alm_pipeline.corpus.completions import completions_of
from alm_pipeline.corpus.cutting import cut_text, split_text
from alm_pipeline.corpus.documents import Document, read_documents
from alm_pipeline.corpus.formats.tools import Arguments
from alm_pipeline.corpus.sources import OpenSource
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.corpus.turns import cut_messages
from alm_pipeline.runtime.threads import results_ahead
from alm_pipeline.vocabulary.text_forms import NFC, FormsDisagree, TextNormalizer, form_named
from storage.errors import UserError

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Example:
    """A text or conversation that is cut to size; exactly one of `text` and `messages` is set.

    `id` is the document's id, followed by '#<piece>' if the document was cut into several pieces.
    """

    id: str
    split: Split
    text: str | None
    messages: list[dict[str, Any]] | None
    text_bytes: int
    """UTF-8 bytes of the text, or of what both sides share of a conversation."""
    normalized: bool
    """Whether the document's text was converted to the corpus's form."""
    continues: bool = False
    """Whether the document goes on after it, so that the limit ends it."""
    tokens: int | None = None
    """The student's tokens of a document that is cut by them; otherwise None."""
    completion_at: int | None = None
    """Where the completion begins that alone is learned: a byte of the text, or a message; None if all is learned."""
    arguments: Arguments | None = None
    """What a conversation's chat template gets beside the messages; all pieces of a document have the same."""


def iter_examples(
    config: CorpusConfig,
    dropped: Counter[str],
    source: OpenSource | None = None,
    limit: TokenLimit | None = None,
    filtered: "DocumentFilter | None" = None,
) -> Iterator[Example]:
    """Yield the corpus's examples, in an order that never changes; counts losses in `dropped`.

    `source` is the corpus's, if it is open already: a stage opens it to compare its identity, and checks it again.
    With `limit`, examples also fit the student's context; several threads encode then. `filtered` leaves documents out.

    The pieces of a document are all in one split. Which examples `sample` keeps and which documents are held out
    depends only on ids, so more data or a larger sample moves none. Examples excluded by `sample` and `max_examples`
    are not counted, since that was configured. Raises UserError if two examples have the same id, or `normalize` names
    an unknown form.
    """
    sampled = _sampled(_unique(_all_examples(config, dropped, source, limit, filtered)), config.sample)
    return islice(sampled, config.max_examples)


@dataclass(frozen=True, slots=True)
class _ReadDocument:
    """A document in the corpus's form."""

    document: Document
    normalized: bool
    dropped_before: Counter[str]
    """What was lost since the document before: the threads are ahead of what is counted."""


@dataclass(frozen=True, slots=True)
class _CutDocument:
    pieces: list[Example]
    dropped: Counter[str]


DocumentFilter = Callable[[Iterable[Document], Counter[str]], Iterable[Document]]
"""takes a corpus's documents, in order, and returns those to keep; counts the others by reason"""


def _all_examples(
    config: CorpusConfig,
    dropped: Counter[str],
    source: OpenSource | None,
    limit: TokenLimit | None,
    filtered: DocumentFilter | None,
) -> Iterator[Example]:
    lost = Counter[str]()

    def documents() -> Iterator[_ReadDocument]:
        found: Iterable[Document] = read_documents(config, lost, source)
        if filtered:
            found = filtered(found, lost)
        for document, normalized in _normalized(found, config.normalize, lost):
            before = lost.copy()
            lost.clear()
            yield _ReadDocument(document, normalized, before)

    def cut(read: _ReadDocument) -> _CutDocument:
        return _cut(read, config, limit)

    for document in map(cut, documents()) if limit is None else results_ahead(cut, documents()):
        dropped.update(document.dropped)
        yield from document.pieces
    dropped.update(lost)


def _cut(read: _ReadDocument, config: CorpusConfig, limit: TokenLimit | None) -> _CutDocument:
    document, dropped = read.document, read.dropped_before
    split: Split = "held_out" if _share(document.id, "split") < config.held_out else "train"
    pieces = _pieces(document, config, limit, dropped)
    completions = completions_of(document, [(piece.text, piece.messages) for piece in pieces])
    found = []
    for number, (piece, completion_at) in enumerate(zip(pieces, completions, strict=True)):
        if reason := _unusable(piece, completion_at):
            dropped[reason] += 1
            continue
        found.append(
            Example(
                f"{document.id}#{number}" if len(pieces) > 1 else document.id,
                split,
                piece.text,
                piece.messages,
                text_bytes(piece.messages or []) if piece.text is None else len(piece.text.encode()),
                read.normalized,
                continues=number + 1 < len(pieces),
                tokens=piece.tokens,
                completion_at=completion_at,
                arguments=document.arguments,
            )
        )
    return _CutDocument(found, dropped)


def _unusable(piece: "_Piece", completion_at: int | None) -> str | None:
    """Return why a piece is left out, or None."""
    if piece.text is not None and piece.text.isspace():
        return "blank_piece"
    length = len(piece.messages or []) if piece.text is None else len(piece.text.encode())
    return "piece_of_a_prompt" if completion_at is not None and completion_at >= length else None


def _normalized(
    documents: Iterable[Document], setting: Literal["auto"] | tuple[str, ...], dropped: Counter[str]
) -> Iterator[tuple[Document, bool]]:
    """Yield the documents in the corpus's form, and whether that changed them."""
    # before they are cut: a piece of a text in such a form is in that form too
    normalize = TextNormalizer([NFC] if setting == "auto" else [form_named(name) for name in setting])
    for document in documents:
        try:
            changed = _with_text(document, normalize)
        except FormsDisagree:
            dropped["no_form_fits_both_tokenizers"] += 1
            continue
        if changed != document and _is_blank(changed):
            dropped["empty"] += 1
            continue
        yield changed, changed != document


def _with_text(document: Document, change: Callable[[str], str]) -> Document:
    if document.messages is None:
        assert document.text is not None
        if document.completion_at is None:
            return replace(document, text=change(document.text))
        prompt, completion = (change(text) for text in split_text(document.text, document.completion_at))
        return replace(document, text=prompt + completion, completion_at=len(prompt.encode()))
    return replace(document, messages=with_texts(document.messages, change))


def _is_blank(document: Document) -> bool:
    text = document.text or "" if document.messages is None else joined_text(document.messages)
    return not text.strip()


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str | None
    messages: Messages | None
    tokens: int | None = None


def _pieces(document: Document, config: CorpusConfig, limit: TokenLimit | None, dropped: Counter[str]) -> list[_Piece]:
    if document.messages is None:
        assert document.text is not None
        if limit is None:
            return [_Piece(text, None) for text in cut_text(document.text, config.byte_limit)]
        return [_Piece(piece.text, None, piece.tokens) for piece in limit.cut_text(document.text, config.max_bytes)]
    most = config.byte_limit if limit is None else config.max_bytes
    arguments = document.arguments
    pieces = cut_messages(document.messages, most, dropped, limit, arguments)
    if limit is None or len(pieces) == 1:
        return [_Piece(None, messages) for messages in pieces]
    return [_Piece(None, messages, limit.lengths.conversation_tokens(messages, arguments)) for messages in pieces]


def _unique(examples: Iterator[Example]) -> Iterator[Example]:
    # 8 bytes per id, whatever its length; with 100 million ids, two hashes collide in one of 3,000 corpora
    seen: set[int] = set()
    for example in examples:
        key = _hash(example.id, "id")
        if key in seen:
            raise UserError(
                f"two examples of the corpus have the id {example.id!r}; "
                "set corpus.id to a column that is different in each row, or to null to number the rows"
            )
        seen.add(key)
        yield example


def _sampled(examples: Iterator[Example], share: float) -> Iterator[Example]:
    return (example for example in examples if is_sampled(example.id, share))


def is_sampled(example_id: str, share: float) -> bool:
    """Return whether a sample of this share of the examples has the one with this id."""
    return share >= 1 or _share(example_id, "sample") < share


def _share(name: str, purpose: str) -> float:
    """Return a number in [0, 1) that depends only on the name and the purpose."""
    return (_hash(name, purpose) >> 11) / 2**53


def _hash(name: str, purpose: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big")
