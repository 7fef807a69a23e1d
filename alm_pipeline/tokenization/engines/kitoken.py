"""`kitoken`: another implementation of the same tokenizers."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np
from pydantic import BaseModel
from tokenizers import Tokenizer

from alm_pipeline.runtime.threads import threads_at_once
from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView

# at the top of the module: first imported in a thread that ends, kitoken 0.11.1 crashes (SIGSEGV) in later threads
with suppress(ImportError):
    import kitoken  # noqa: F401

_MOST_INSTANCES = 8
_MOST_MISREAD = 100
"""tokens: every text is searched for each of them"""


class MisreadTokens(BaseModel):
    """What has been found out about a tokenizer."""

    tokens: list[str]
    """those that kitoken reads differently"""


class KitokenEngine:
    """`kitoken`: other code for the same tokenizers, one and a half to five times as fast.

    It is known to differ from `tokenizers` on four things: literals of special tokens that should be read as text, the
    literal of the unknown token, U+2581 in a text, and tokens that the merges never reach. It takes the last for the
    words that they spell (Gemma 3 has some, such as ` yyyy`). The standard engine encodes the texts that contain any.
    Raises ValueError where it can't read the tokenizer, or reads many tokens differently; ImportError where it is not
    installed.
    """

    name = "kitoken"

    def __init__(self, tokenizer: Tokenizer, view: ByteView, standard: StandardEngine, findings: Findings) -> None:
        from kitoken import Kitoken

        definition = tokenizer.to_str().encode()
        self._standard = standard
        self._idle = _instances(Kitoken, definition)
        question, subject = "tokens that kitoken reads differently", hashlib.sha256(definition).hexdigest()
        answer = findings.recall(question, subject, MisreadTokens)
        if answer is None:
            answer = findings.record(question, subject, MisreadTokens(tokens=self._misread(view)))
        always = [
            view.space or "",
            "" if view.unknown is None else view.spelling[view.unknown].decode(),
            *_few(answer.tokens),
        ]
        special = [view.spelling[id_].decode() for id_ in np.flatnonzero(view.special).tolist()]
        self._needs_standard = {True: _ContainsAny(always), False: _ContainsAny([*always, *special])}
        """by `special_literals`"""

    def _misread(self, view: ByteView) -> list[str]:
        """Return the tokens whose own text it reads differently."""
        ordinary = np.flatnonzero(~view.special).tolist()
        # a token that is part of a character is tried on the whole characters in it, usually none
        texts = list(dict.fromkeys(filter(None, (view.spelling[id_].decode(errors="ignore") for id_ in ordinary))))
        ids, standard_ids = self._encode(texts, False), self._standard.encode(texts, special_literals=False)
        triples = zip(texts, ids, standard_ids, strict=True)
        return [text for text, row, standard_row in triples if row != standard_row]

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> list[list[int]]:
        needs_standard = self._needs_standard[special_literals]
        indices = [index for index, text in enumerate(texts) if needs_standard(text)]
        encoded = self._encode(texts, special_literals)
        standard_ids = self._standard.encode([texts[i] for i in indices], special_literals=special_literals)
        for index, ids in zip(indices, standard_ids, strict=True):
            encoded[index] = ids
        return encoded

    def _encode(self, texts: Sequence[str], special_literals: bool) -> list[list[int]]:
        instance = self._idle.get()
        try:
            encoded: list[list[int]] = instance.encode_all(list(texts), special_literals)
            return encoded
        finally:
            self._idle.put(instance)


def _instances(kind: Any, definition: bytes) -> SimpleQueue[Any]:
    """Return an instance of kitoken for each thread that may call at once.

    Threads that share an instance slow each other down, and each instance takes as much memory as the tokenizer.
    """
    instances: SimpleQueue[Any] = SimpleQueue()
    try:
        for _ in range(min(threads_at_once(), _MOST_INSTANCES)):
            instances.put(kind.from_tokenizers(definition))
    except BaseException as error:  # kitoken's panics are not subclasses of Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"kitoken can't read the tokenizer: {error}") from error
    return instances


def _few(misread: list[str]) -> list[str]:
    if len(misread) > _MOST_MISREAD:
        raise ValueError(f"kitoken reads {len(misread)} tokens differently, among them {misread[0]!r}")
    return misread


class _ContainsAny:
    """Whether a text contains any of these words. Thousands of them may begin alike."""

    def __init__(self, words: Iterable[str]) -> None:
        self._by_start: dict[str, list[str]] = {}
        for word in filter(None, words):
            self._by_start.setdefault(word[:2], []).append(word)

    def __call__(self, text: str) -> bool:
        return any(start in text and any(word in text for word in words) for start, words in self._by_start.items())
