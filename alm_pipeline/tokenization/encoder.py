"""Encoding of texts and conversations to ids, with the bytes that each token covers, verified for every example."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.conversations.sections import ASSISTANT, Conversation, sections
from alm_pipeline.corpus.formats.marks import learned_role
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.chat.template import RenderedConversation, TemplateRefused
from alm_pipeline.tokenization.covering import cover, up_to
from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.proof import DifferentIds, difference
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine
from alm_pipeline.tokenization.literals import encode_around, typed_literals
from alm_pipeline.tokenization.rows import EncodedBatch, EncodedExample, Uncovered, surround
from alm_pipeline.tokenization.spans import Spans, token_spans
from alm_pipeline.vocabulary.byte_view import check_vocabulary
from alm_pipeline.vocabulary.text_forms import TextNormalizer
from storage.errors import UserError, user_error

Ids = npt.NDArray[np.int32]


class Dropped(StrEnum):
    """Why an example has no tokens. For a text that a normalizer changes, the step is named: `changed_by_nfc`."""

    NOT_ROUND_TRIP = "tokens_spell_other_bytes"
    """for no other known reason"""
    UNKNOWN_TOKEN = "unknown_token"
    """the vocabulary can't spell the whole text"""
    STAND_IN = "holds_the_space_stand_in"
    """the text contains U+2581, which SentencePiece reads as a space"""
    TEMPLATE_CHANGES_CONTENT = "template_changes_content"
    TEMPLATE_REFUSES = "template_refuses"
    OVER_CONTEXT = "over_context"
    SPECIAL_LITERAL = "special_token_in_text"
    """the text has the literal of a special token, which the tokenizer can't read as text: it is one of its pieces"""
    WITHOUT_EMBEDDING = "token_without_embedding"
    """a token of it has no row in the model's embedding, so the model can't read it"""


class ByteEncoder:
    """Encodes texts and conversations with a tokenizer, and determines the bytes that each token covers.

    The constructor raises UserError for a tokenizer whose bytes are not known exactly, or that is not the model's.
    """

    def __init__(
        self, tokenizer: LoadedTokenizer, max_tokens: int | None = None, embedding_rows: int | None = None
    ) -> None:
        """`embedding_rows` are those of the tokenizer's model (None: every token has one)."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.view = tokenizer.view
        self._rows = self.view.size if embedding_rows is None else embedding_rows
        self.standard = StandardEngine(tokenizer.encoding_backend)
        self._engine: Engine = self.standard
        self._forms = [(form.name, TextNormalizer([form])) for form in tokenizer.forms]
        self._added = np.zeros(self.view.size, dtype=bool)
        self._added[list(self.view.added)] = True
        self._before, self._after = tokenizer.frame
        self._check_rows()

    @property
    def frame(self) -> int:
        """The number of special tokens around every text."""
        return len(self._before) + len(self._after)

    def check_unchanged(self) -> None:
        """Raise UserError if the tokenizer's files were changed since it was loaded."""
        self.tokenizer.check_unchanged()

    def _check_rows(self) -> None:
        check_vocabulary(self.view, self._rows, self.tokenizer.name)
        if lacking := [id_ for id_ in (*self._before, *self._after) if id_ >= self._rows]:
            raise UserError(
                f"{self.tokenizer.name}: the tokenizer puts {self.view.spelling[lacking[0]].decode()!r} (id "
                f"{lacking[0]}) around every text, and the model's embedding has {self._rows} rows, none for it: put "
                "the model's own tokenizer beside it, or call resize_token_embeddings and save it again"
            )

    @property
    def engine(self) -> Engine:
        """The engine that encodes whole texts."""
        return self._engine

    def with_engine(self, engine: Engine) -> "ByteEncoder":
        """Return this encoder with another engine, which has to give the same ids as the standard one."""
        encoder = copy.copy(self)
        encoder._engine = engine
        return encoder

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode plain texts, with the special tokens that the tokenizer adds.

        Literals of special tokens are text, or the text is dropped.
        """
        bodies = self._bodies(texts, special_literals=False)
        batch = self._verified(texts, bodies.ids, bodies.offsets)
        too_long = np.diff(bodies.offsets) + len(self._before) + len(self._after) > (self.max_tokens or np.inf)
        dropped = [
            Dropped.OVER_CONTEXT if reason is None and long else reason
            for reason, long in zip(batch.dropped, too_long.tolist(), strict=True)
        ]
        return surround(replace(batch, dropped=dropped), self._before, self._after)

    def texts_of_ids(self, texts: Sequence[str], ids: Sequence[Ids]) -> EncodedBatch:
        """Return plain texts with these tokens instead of those that the tokenizer gives, if they spell the texts.

        The special tokens before every text may be among them; there are none after it.
        """
        frame = self._before
        bodies = [row[len(frame) :] if row[: len(frame)].tolist() == frame else row for row in ids]
        offsets = np.cumsum([0, *map(len, bodies)], dtype=np.int64)
        standard = self.with_engine(self.standard)  # no engine made these tokens, so none is to be refuted
        batch = standard._verified(texts, np.concatenate([np.zeros(0, np.int32), *bodies]), offsets)
        return surround(batch, frame, [])

    def token_ends(self, text: str) -> npt.NDArray[np.int64]:
        """Return where each token of a text ends, in bytes, without the special tokens around it.

        The ends of tokens that spell another text are spread evenly: only their number is known.
        """
        ids = self._bodies([text], special_literals=False).ids
        content = text.encode()
        spans = self._spans(ids, content)
        if spans is None:
            return np.arange(1, len(ids) + 1) * len(content) // max(1, len(ids))
        return spans.ends

    def conversation_tokens(self, conversation: Conversation, arguments: Mapping[str, Any] | None = None) -> int:
        """Return the number of tokens of the conversation in the chat template; 0 if it can't be encoded."""
        return len(self.encode_conversations([conversation], [arguments]).token_ids)

    def encode_rendered(self, text: str) -> Ids:
        """Return the tokens of what a chat template wrote, in which literals of special tokens are those tokens."""
        return self._bodies([text], special_literals=True).ids

    def _bodies(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        # some faults of a tokenizer.json show with some texts only, as a panic of the library
        with user_error(
            f"{self.tokenizer.name}: its tokenizer can't encode a text of the corpus",
            "save it again with the installed version of tokenizers, or use another tokenizer",
        ):
            return self._engine.encode(texts, special_literals=special_literals)

    def _verified(self, texts: Sequence[str], ids: Ids, offsets: npt.NDArray[np.int64]) -> EncodedBatch:
        """Compare the texts' tokens with the bytes of the texts, and drop the texts that differ."""
        contents = [text.encode() for text in texts]
        lengths, spelled = self._spelled(ids, offsets, contents)
        unknown = self._rows_with_unknown(ids, offsets)
        lacking = _rows_with(ids >= self._rows, offsets)
        special = self._rows_with_special(ids, offsets) - unknown
        dropped: list[str | None] = [None] * len(texts)
        uncovered: dict[int, Uncovered] = {}
        for row in sorted({*np.flatnonzero(~spelled).tolist(), *unknown, *lacking, *special}):
            tokens = slice(offsets[row], offsets[row + 1])
            if row in lacking:
                dropped[row] = Dropped.WITHOUT_EMBEDDING
            elif row in special:
                dropped[row] = Dropped.SPECIAL_LITERAL
            elif row in unknown or not (spans := self._spans(ids[tokens], contents[row])):
                self._require_standard_ids(texts[row], ids[tokens], special_literals=False)
                dropped[row] = self._reason(texts[row], unknown=row in unknown)
            else:
                lengths[tokens] = spans.ends - spans.starts
                gaps = Uncovered.between(spans.starts, spans.ends, len(contents[row]))
                uncovered |= {row: gaps} if len(gaps.at) else {}
        kinds, turns = np.zeros(len(ids), np.uint8), np.full(len(ids), -1, np.int16)
        none: list[tuple[()]] = [()] * len(texts)
        return EncodedBatch(offsets, ids, lengths, kinds, turns, uncovered, none, none, dropped)

    def _require_standard_ids(self, text: str, ids: Ids, *, special_literals: bool) -> None:
        """Raise DifferentIds if a fast engine's ids, for which a text would be dropped, are not the standard ones."""
        if self._engine is self.standard:
            return
        if not np.array_equal(self.standard.encode([text], special_literals=special_literals).ids, ids):
            raise DifferentIds(difference(self._engine, text))

    def _spelled(
        self, ids: Ids, offsets: npt.NDArray[np.int64], contents: Sequence[bytes]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return the bytes of each token [tokens], and whether the tokens spell each text [texts].

        A space in front of the text is allowed for (dummy prefix).
        """
        from alm_pipeline.tokenization.spelling_kernel import spell_texts  # imports numba, which takes seconds

        # compiled code reads past the end of an array without an error
        assert not len(ids) or 0 <= ids.min() <= ids.max() < self.view.size, "an id beyond the vocabulary"
        text_offsets = np.cumsum([0, *map(len, contents)], dtype=np.int64)
        lengths, spelled = np.empty(len(ids), np.int32), np.empty(len(contents), dtype=bool)
        text = np.frombuffer(b"".join(contents), np.uint8)
        spell_texts(ids, offsets, self.view.letters, self.view.starts, text, text_offsets, lengths, spelled)
        return lengths, spelled

    def _spans(self, ids: Ids, content: bytes) -> Spans | None:
        return token_spans(self.view, ids, self._cut_out(ids), content)

    def _rows_with_unknown(self, ids: Ids, offsets: npt.NDArray[np.int64]) -> set[int]:
        return set() if self.view.unknown is None else _rows_with(ids == self.view.unknown, offsets)

    def _rows_with_special(self, ids: Ids, offsets: npt.NDArray[np.int64]) -> set[int]:
        return _rows_with(self.view.special[ids], offsets) if self.tokenizer.spells_special else set()

    def _has_unknown(self, ids: Ids) -> bool:
        return self.view.unknown is not None and self.view.unknown in ids

    def _cut_out(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Return the mask of a text's added tokens that are not special: their literals are always cut out."""
        return self._added[ids] & ~self.view.special[ids]

    def _reason(self, text: str, *, unknown: bool) -> str:
        if unknown:
            return Dropped.UNKNOWN_TOKEN
        if self.view.space and self.view.space in text:
            return Dropped.STAND_IN
        changing = (name for name, form in self._forms if form(text) != text)
        return next((f"changed_by_{name}" for name in changing), Dropped.NOT_ROUND_TRIP)

    def encode_conversations(
        self, conversations: Sequence[Conversation], arguments: Sequence[Mapping[str, Any] | None] | None = None
    ) -> EncodedBatch:
        """Encode conversations in the tokenizer's chat template. Only the bytes of the shared texts are counted.

        `arguments` are what the template gets beside each conversation, such as its tools. The literal of a special
        token is that token in the template's own text, and text in a content.
        """
        given = [None] * len(conversations) if arguments is None else arguments
        renderings = [self._render(*row) for row in zip(conversations, given, strict=True)]
        texts = [rendering.text for rendering in renderings if isinstance(rendering, RenderedConversation)]
        bodies = self._bodies(texts, special_literals=True)
        rows = iter(range(len(bodies)))
        return EncodedBatch.of(
            [
                self._conversation(conversation, rendering, bodies.row(next(rows)))
                if isinstance(rendering, RenderedConversation)
                else rendering
                for conversation, rendering in zip(conversations, renderings, strict=True)
            ]
        )

    def _render(
        self, conversation: Conversation, arguments: Mapping[str, Any] | None
    ) -> RenderedConversation | Dropped:
        try:
            return self.tokenizer.template.render(conversation, arguments) or Dropped.TEMPLATE_CHANGES_CONTENT
        except TemplateRefused:
            return Dropped.TEMPLATE_REFUSES

    def _conversation(
        self, conversation: Conversation, rendering: RenderedConversation, ids: Ids
    ) -> EncodedExample | str:
        text, added = rendering.text.encode(), self._added[ids]
        spans = token_spans(self.view, ids, added, text)
        if spans is None or self._has_unknown(ids):
            self._require_standard_ids(rendering.text, ids, special_literals=True)
        if spans is not None and (typed := typed_literals(self.view, rendering, ids, spans)).any():
            kept = self.view.special[ids] & ~typed
            ids, in_place = encode_around(self.standard, text, ids, spans, kept)
            spans = token_spans(self.view, ids, in_place | self._cut_out(ids), text)
            if spans is not None and typed_literals(self.view, rendering, ids, spans).any():
                return Dropped.SPECIAL_LITERAL
        return self._covered(conversation, rendering, ids, spans)

    def conversation_of_ids(
        self, conversation: Conversation, arguments: Mapping[str, Any] | None, ids: Ids
    ) -> EncodedExample | str:
        """Return a conversation with these tokens, which are not the tokenizer's own, or why it is dropped.

        They have to spell what the template writes up to the end of the last turn, or to the place where it was cut.
        """
        rendering = self._render(conversation, arguments)
        if not isinstance(rendering, RenderedConversation):
            return rendering
        shown = up_to(rendering, len(self.view.spell(ids)))
        spans = token_spans(self.view, ids, self._added[ids], shown.text.encode())
        return self._covered(conversation, shown, ids, spans)

    def _covered(
        self, conversation: Conversation, rendering: RenderedConversation, ids: Ids, spans: Spans | None
    ) -> EncodedExample | str:
        """Return a conversation whose tokens cover these spans of its rendering, or why it is dropped."""
        unknown = self._has_unknown(ids)
        if spans is None or unknown:
            return self._reason(rendering.text, unknown=unknown)
        if (ids >= self._rows).any():
            return Dropped.WITHOUT_EMBEDDING
        if len(ids) > (self.max_tokens or np.inf):
            return Dropped.OVER_CONTEXT
        own = sections(conversation)
        section_ends = np.cumsum([len(section.text.encode()) for section in own], dtype=np.int64)
        covering = cover(rendering, spans, section_ends)
        return EncodedExample(
            ids,
            covering.byte_lengths,
            covering.kinds,
            covering.turns,
            covering.uncovered,
            tuple(_role(conversation[section.message], section.role) for section in own),
            tuple(np.diff(section_ends, prepend=0).tolist()),
        )


def load_spelling_kernel() -> None:
    """Load the compiled code that the first text would load: numba takes half a second for it."""
    from alm_pipeline.tokenization.spelling_kernel import spell_texts

    # as `_spelled` calls it: for arrays that can be written to, other code would be loaded
    ids, text = np.frombuffer(b"", np.int32), np.frombuffer(b"", np.uint8)
    offsets, letters = np.zeros(1, np.int64), np.zeros(0, np.uint8)
    spell_texts(ids, offsets, letters, offsets, text, offsets, np.zeros(0, np.int32), np.zeros(0, np.bool_))


def _role(message: Mapping[str, Any], role: str) -> str:
    """Return a section's role; only the assistant's are learned, so the marks of other messages change nothing."""
    return learned_role(message, role) if message["role"] == ASSISTANT else role


def _rows_with(tokens: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64]) -> set[int]:
    """Return the rows that have any of these tokens."""
    return set((np.searchsorted(offsets, np.flatnonzero(tokens), side="right") - 1).tolist())
