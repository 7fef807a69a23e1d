"""A model in this process writes, in batches, by transformers' generation with its cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from alm_pipeline.config import SamplingConfig
from alm_pipeline.ensemble.generation import FiniteLogits
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.rollouts.answers import AnswerReader, is_empty
from alm_pipeline.rollouts.prompts import Prompt
from alm_pipeline.rollouts.sampling import SeededSampler, uniforms
from alm_pipeline.rollouts.written import LeftOut, Written
from alm_pipeline.tokenization.chat.template import ChatTemplate, TemplateRefused
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.transfer.fvt import chat_tokens
from storage.kinds.rollouts import FINISHED, TRUNCATED
from storage.schemas import TokenKind

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in the writer's tokens."""

    prompt: Prompt
    ids: Ids
    text: str
    """of a conversation: as the template writes it, with the beginning of the answer"""


@dataclass(frozen=True)
class LocalWriter:
    """A model that is loaded here."""

    model: ModelReference
    sampling: SamplingConfig
    has_ids = True

    @property
    def label(self) -> str:
        """A short readable name; of a student, that of the model that it was made of."""
        return self.model.label.partition("-from-")[0]

    def identity(self) -> dict[str, Any]:
        """Return what decides what it writes, beside the sampling."""
        return {"model": self.model.identity, "tokenizer": self.model.tokenizer.identity}

    def check_unchanged(self) -> None:
        """Raise UserError if its files were changed since they were read."""
        self.model.check_unchanged()
        self.model.tokenizer.check_unchanged()

    def write(self, prompts: Sequence[Prompt], rounds: Sequence[int], kept: str) -> list[Written | LeftOut]:
        """Write on each prompt, as `Writer.write` does; nothing is kept."""
        results: list[Written | LeftOut | None] = [None] * len(prompts)
        encoded: dict[int, EncodedPrompt] = {}
        for row, prompt in enumerate(prompts):
            found = self._encode(prompt)
            if isinstance(found, LeftOut):
                results[row] = found
            else:
                encoded[row] = found
        # prompts of about the same length together, for little padding
        order = sorted(encoded, key=lambda row: (len(encoded[row].ids), row))
        for start in range(0, len(order), self._at_once):
            rows = order[start : start + self._at_once]
            written = self._generate([encoded[row] for row in rows], [rounds[row] for row in rows])
            for row, ids in zip(rows, written, strict=True):
                results[row] = self._read(encoded[row], ids)
        return [result for result in results if result is not None]

    def release(self) -> None:
        """Take the model out of memory; it is loaded again when it writes."""
        vars(self).pop("_loaded", None)

    @property
    def _at_once(self) -> int:
        """The most prompts that `_generate` gets."""
        return self.sampling.at_once

    @cached_property
    def _loaded(self) -> Any:
        model = self.model.load(self.sampling.dtype)
        self._end_ids  # noqa: B018  (read from the settings that are replaced now)
        # no other setting that comes with the model, such as a penalty, has a part in what is drawn
        model.generation_config = GenerationConfig()
        return model

    @cached_property
    def _encoder(self) -> ByteEncoder:
        rows = self.model.vocabulary_rows
        return ByteEncoder(self.model.tokenizer, embedding_rows=rows)

    @cached_property
    def _end_ids(self) -> list[int]:
        """The tokens that end a text: those in the model's settings, the tokenizer's, and the end of a turn."""
        tokenizer = self.model.tokenizer.fast
        settings = GenerationConfig.from_model_config(self.model.load_config()).eos_token_id
        saved = self._saved_end_ids
        own = [tokenizer.eos_token_id, chat_tokens(tokenizer).get(TokenKind.END_OF_TURN)]
        given = settings if isinstance(settings, list) else [settings]
        return sorted({id_ for id_ in [*given, *saved, *own] if id_ is not None})

    @cached_property
    def _saved_end_ids(self) -> list[int]:
        try:
            settings = GenerationConfig.from_pretrained(self.model.folder).eos_token_id
        except OSError:  # it has no generation_config.json
            return []
        return settings if isinstance(settings, list) else [] if settings is None else [settings]

    def _encode(self, prompt: Prompt) -> EncodedPrompt | LeftOut:
        encoded = self._encode_text(prompt) if prompt.text is not None else self._encode_conversation(prompt)
        if isinstance(encoded, LeftOut):
            return encoded
        length = self.model.context_length
        if length is not None and len(encoded.ids) + self.sampling.max_tokens > length:
            return LeftOut.OVER_CONTEXT
        return encoded

    def _encode_text(self, prompt: Prompt) -> EncodedPrompt | LeftOut:
        assert prompt.text is not None
        batch = self._encoder.encode([prompt.text])
        if batch.dropped[0]:
            return LeftOut.UNREADABLE
        after = self.model.tokenizer.frame[1]
        return EncodedPrompt(prompt, batch.token_ids[: len(batch.token_ids) - len(after)], prompt.text)

    def _encode_conversation(self, prompt: Prompt) -> EncodedPrompt | LeftOut:
        messages = prompt.messages or []
        if any(literal in str(message.get("content")) for message in messages for literal in self._literals):
            return LeftOut.SPECIAL_LITERAL
        try:
            text = self._template.prompt(messages, prompt.arguments)
        except TemplateRefused:
            return LeftOut.UNREADABLE
        ids = self._encoder.encode_rendered(text)
        if (ids >= self.model.vocabulary_rows).any():
            return LeftOut.UNREADABLE
        return EncodedPrompt(prompt, ids, text)

    @cached_property
    def _literals(self) -> list[str]:
        view = self.model.tokenizer.view
        return [view.spelling[id_].decode() for id_ in np.flatnonzero(view.special).tolist() if view.spelling[id_]]

    @property
    def _template(self) -> ChatTemplate:
        return self.model.tokenizer.template

    def _generate(self, prompts: Sequence[EncodedPrompt], rounds: Sequence[int]) -> Iterator[Ids]:
        """Yield the tokens written on each prompt, up to and with one that ends the text."""
        model, most = self._loaded, self.sampling.max_tokens
        width = max(len(prompt.ids) for prompt in prompts)
        ids = np.full((len(prompts), width), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :], mask[row, width - len(prompt.ids) :] = prompt.ids, 1
        numbers = [
            uniforms(self.sampling.seed, round_, prompt.prompt.id, most)
            for prompt, round_ in zip(prompts, rounds, strict=True)
        ]
        sampler = SeededSampler(self.sampling, np.stack(numbers), HeadVocabulary.of(model, self.model.tokenizer).rows)
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=most, eos_token_id=self._end_ids or None, pad_token_id=self._pad
        )
        finite = FiniteLogits(self.model.name, self.sampling.dtype)
        with torch.inference_mode():
            output = model.generate(
                torch.from_numpy(ids).to(model.device),
                attention_mask=torch.from_numpy(mask).to(model.device),
                generation_config=settings,
                logits_processor=[finite, sampler],
            )
        for row in output[:, width:].cpu().numpy().astype(np.int32):
            ends = np.flatnonzero(np.isin(row, self._end_ids))
            yield row[: ends[0] + 1] if len(ends) else row

    @property
    def _pad(self) -> int:
        """A token for where there is none, which is masked."""
        own: int | None = self.model.tokenizer.fast.pad_token_id
        return own if own is not None else next(iter(self._end_ids), 0)

    def _read(self, prompt: EncodedPrompt, written: Ids) -> Written | LeftOut:
        """Return the prompt with what was written on it."""
        is_finished = len(written) > 0 and int(written[-1]) in self._end_ids
        body, end = (written[:-1], written[-1:]) if is_finished else (written, written[:0])
        if self.model.tokenizer.view.special[body].any():
            return LeftOut.SPECIAL_TOKEN
        body = body if is_finished else self._whole_characters(body)
        try:
            text = self._spelled(body)
        except UnicodeDecodeError:
            return LeftOut.INVALID_UTF8
        if not text.strip():
            return LeftOut.EMPTY
        ids = np.concatenate([prompt.ids, body, end]).tolist()
        counts = FINISHED if is_finished else TRUNCATED, len(prompt.ids), len(written)
        if prompt.prompt.text is not None:
            at = len(prompt.prompt.text.encode())
            return Written(prompt.prompt, prompt.prompt.text + text, None, at, *counts, ids)
        message = AnswerReader(self._template, prompt.prompt, prompt.text).read(text, self._spelled(end))
        if message is None:
            return LeftOut.OTHER_FORM
        if is_empty(message):
            return LeftOut.EMPTY
        messages = prompt.prompt.messages or []
        return Written(prompt.prompt, None, [*messages, message], len(messages), *counts, ids)

    def _spelled(self, ids: Ids) -> str:
        return self.model.tokenizer.view.spell(ids).decode()

    def _whole_characters(self, ids: Ids) -> Ids:
        """Return the tokens without the last ones if these begin a character that is not complete."""
        view = self.model.tokenizer.view
        for dropped in range(min(4, len(ids))):
            kept = ids[: len(ids) - dropped]
            try:
                view.spell(kept).decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    break
            else:
                return kept
        return ids
