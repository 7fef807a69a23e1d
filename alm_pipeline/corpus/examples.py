"""Examples: pieces of documents with stable ids, sampled, and split into training and held-out ones."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from alm_pipeline.config import CorpusConfig
from alm_pipeline.corpus.cutting import cut_messages, cut_text
from alm_pipeline.corpus.documents import Document, read_documents
from storage.errors import UserError

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Example:
    """A text or conversation of at most `max_bytes`; exactly one of `text` and `messages` is set.

    `id` is the document's, with '#<piece>' behind it where the document was cut into more than one.
    """

    id: str
    split: Split
    text: str | None
    messages: list[dict[str, Any]] | None


def iter_examples(config: CorpusConfig, dropped: Counter[str]) -> Iterator[Example]:
    """The corpus's examples, in an order that never changes; adds to `dropped` what is lost on the way.

    The pieces of a document are all in one split. Which examples `sample` keeps and which documents are held
    out depends on ids only, so more data or a larger sample moves none. What `sample` and `max_examples`
    leave out is not counted, since it was asked for. Raises a `UserError` if two examples have the same id.
    """
    kept = _sampled(_unique(_all_examples(config, dropped)), config.sample)
    return islice(kept, config.max_examples)


def _all_examples(config: CorpusConfig, dropped: Counter[str]) -> Iterator[Example]:
    for document in read_documents(config, dropped):
        split: Split = "held_out" if _share(document.id, "split") < config.held_out else "train"
        pieces = _cut(document, config.max_bytes, dropped)
        for number, (text, messages) in enumerate(pieces):
            if text is not None and text.isspace():
                dropped["blank_piece"] += 1
                continue
            example_id = f"{document.id}#{number}" if len(pieces) > 1 else document.id
            yield Example(example_id, split, text, messages)


def _cut(
    document: Document, max_bytes: int, dropped: Counter[str]
) -> list[tuple[str | None, list[dict[str, Any]] | None]]:
    if document.messages is not None:
        return [(None, messages) for messages in cut_messages(document.messages, max_bytes, dropped)]
    assert document.text is not None
    return [(text, None) for text in cut_text(document.text, max_bytes)]


def _unique(examples: Iterator[Example]) -> Iterator[Example]:
    # 8 bytes an id, whatever the ids' length; among 100 million ids two hashes meet once in 3,000 corpora
    seen: set[int] = set()
    for example in examples:
        key = _hash(example.id, "id")
        if key in seen:
            raise UserError(
                f"two examples of the corpus have the id {example.id!r}; "
                "set corpus.id to a column that differs in each row, or to none to number the rows"
            )
        seen.add(key)
        yield example


def _sampled(examples: Iterator[Example], share: float) -> Iterator[Example]:
    return (example for example in examples if share >= 1 or _share(example.id, "sample") < share)


def _share(name: str, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but the name and what it is for."""
    return (_hash(name, purpose) >> 11) / 2**53


def _hash(name: str, purpose: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big")
