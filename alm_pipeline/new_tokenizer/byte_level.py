"""Byte-level conversion: a tokenizer whose tokens are the 256 bytes and the source's control tokens.

Id k is byte k; the control tokens follow from 256 on, in the source's order. Between control tokens every text becomes
its UTF-8, with one token per byte, and can be decoded exactly: the source's normalizer, its dummy prefix and the flags
that let a token absorb white space are not kept. The tokenizer is a byte-level BPE tokenizer without merges, which
every library that reads tokenizer.json supports. It takes 0.3 µs per byte, however long the text.

Control tokens are the source's special tokens, and those of its other added tokens that look like a name in brackets
and that its chat template writes: Qwen's `<think>`, DeepSeek's `<｜User｜>`. As with the source, their literals are
tokens anywhere in a text. Other added tokens are not kept, such as Gemma's `<table>` and its line breaks.

AutoTokenizer loads it as it was saved, except beside a config.json of model type qwen2: there transformers 5 uses
Qwen2's own normalizer and special tokens, whatever the tokenizer's files say. PreTrainedTokenizerFast doesn't.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.tokenization.chat.template import TemplateRefused, apply_template
from alm_pipeline.vocabulary.byte_view import byte_vocabulary
from storage.errors import UserError

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast

BYTES = 256
# a name between signs, such as `<think>` and `[INST]`: anything else that a template writes is plain text
_BRACKETED = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
_CONVERSATIONS = (
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
    [{"role": "system", "content": "0"}, {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
)


def write_byte_level(source_name: str, folder: Path) -> "PreTrainedTokenizerFast":
    """Convert the tokenizer of this name (a folder, a hub name, `demo:NAME`) into a new folder.

    Raises UserError if the folder exists and is not empty, or if the source can't be loaded or converted.
    """
    with new_folder(folder) as written:
        tokenizer = byte_level_tokenizer(load_tokenizer(source_name))
        tokenizer.save_pretrained(written)
    return tokenizer


def byte_level_tokenizer(source: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """Return a tokenizer of 256 byte tokens and the source's control tokens, with the source's chat template.

    The control tokens keep their literals, roles and flags, and the tokenizer puts the same ones around a text.
    Raises UserError if the literal of a control token is one of the 256 letters that represent bytes.
    """
    backend = Tokenizer(models.BPE(byte_vocabulary(), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(_checked(control_tokens(source), source.name_or_path))
    backend.post_processor = same_frame(source.backend_tokenizer.post_processor, backend)
    return wrapped_like(source, backend)


def wrapped_like(source: "PreTrainedTokenizerFast", backend: Tokenizer) -> "PreTrainedTokenizerFast":
    """Wrap the backend with the source's roles, sides, lengths and chat template."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=source.model_max_length,
        padding_side=source.padding_side,
        truncation_side=source.truncation_side,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=source.extra_special_tokens,
        **source.special_tokens_map,
    )
    wrapped.chat_template = source.chat_template
    return wrapped


def control_tokens(source: "PreTrainedTokenizerFast") -> list[AddedToken]:
    """Return its special tokens, and the bracketed names among its other added tokens that its chat template writes."""
    texts = list(template_texts(source))
    added = [token for _, token in sorted(source.added_tokens_decoder.items())]
    # `normalized` and the flags that absorb white space are dropped: a literal is matched exactly
    return [
        AddedToken(token.content, single_word=token.single_word, special=token.special, normalized=False)
        for token in added
        if token.special or (_BRACKETED.fullmatch(token.content) and any(token.content in text for text in texts))
    ]


def _checked(control: list[AddedToken], name: str) -> list[AddedToken]:
    if clash := byte_vocabulary().keys() & {token.content for token in control}:
        raise UserError(f"{name}: its special token {min(clash)!r} stands for a byte in a byte alphabet")
    return control


def template_texts(source: "PreTrainedTokenizerFast") -> Iterator[str]:
    """Yield the chat templates and what they write: some assemble their tokens, as in '<|' + role + '|>'."""
    templates = source.chat_template
    if not templates:
        return
    yield from templates.values() if isinstance(templates, Mapping) else [templates]
    for conversation in _CONVERSATIONS:
        with contextlib.suppress(TemplateRefused):  # a template may refuse a role
            yield apply_template(source, conversation)


def same_frame(source: processors.PostProcessor | None, target: Tokenizer) -> processors.TemplateProcessing:
    """Return a post-processor that puts the source's tokens around a text and around a pair, with the target's ids."""
    single, pair = _frame(source, target, 1), _frame(source, target, 2)
    literals = sorted({piece.rpartition(":")[0] for piece in [*single, *pair]} - {"$A", "$B"})
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(literal, target.token_to_id(literal)) for literal in literals]
    )


def _frame(source: processors.PostProcessor | None, target: Tokenizer, texts: int) -> list[str]:
    """Return the pieces of a template, such as ["<bos>:0", "$A:0"], found by processing short texts."""
    if source is None:
        return ["$A:0", "$B:1"][:texts]
    plain = (target.encode("0", add_special_tokens=False) for _ in range(texts))
    framed = source.process(next(plain), next(plain, None))
    pieces: list[str] = []
    for token, text, type_id in zip(framed.tokens, framed.sequence_ids, framed.type_ids, strict=True):
        piece = f"{token if text is None else ('$A', '$B')[text]}:{type_id}"
        # a text may have several tokens, since SentencePiece puts a space in front
        if text is None or pieces[-1:] != [piece]:
            pieces.append(piece)
    return pieces
