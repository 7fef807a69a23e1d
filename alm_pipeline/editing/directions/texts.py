"""The token ids of prompts and answers, as the model sees them: with its begin-of-text token or its chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from alm_pipeline.models.reference import ModelReference
from alm_pipeline.tokenization.chat.template import apply_template
from alm_pipeline.vocabulary.framing import plain_backend, special_tokens_around
from storage.errors import UserError


@dataclass(frozen=True)
class TextEncoder:
    """Encodes prompts with and without answers for a model."""

    model: ModelReference
    chat: bool
    """whether a prompt is a user's message"""

    def __post_init__(self) -> None:
        """Raises UserError for a chat without a template: before a model is loaded."""
        if self.chat and not self.model.tokenizer.chat_template:
            raise UserError(f"{self.model.name}: its tokenizer has no chat template: leave chat out")

    def ids(self, prompt: str, answer: str = "") -> list[int]:
        """Return the ids of a prompt and its answer, in one text; without tokens that end a text.

        Raises UserError if the text is longer than the model's context.
        """
        text = (self._in_chat(prompt) if self.chat else prompt) + answer
        ids = [*self._begin, *self._backend.encode(text, add_special_tokens=False).ids]
        limit = self.model.context_length
        if limit and len(ids) > limit:
            raise UserError(
                f"{self.model.name}: the prompt {prompt[:60]!r} has {len(ids)} tokens with its answer, and the model's "
                f"context {limit}: set a smaller max_bytes"
            )
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, without special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def _backend(self) -> Tokenizer:
        return plain_backend(self.model.tokenizer.fast.backend_tokenizer)

    @cached_property
    def _begin(self) -> list[int]:
        return [] if self.chat else special_tokens_around(self._backend)[0]

    def _in_chat(self, prompt: str) -> str:
        return apply_template(self.model.tokenizer.fast, [{"role": "user", "content": prompt}])
