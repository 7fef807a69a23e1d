"""Streams generated text from a model or an ensemble."""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.ensemble.config import refuse_settings_of_ensembles
from alm_pipeline.ensemble.loading import load, require_prompts
from alm_pipeline.ensemble.model import EnsembleModel
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.head_vocabulary import check_rows
from alm_pipeline.models.loading import generating_as_asked, require_device
from alm_pipeline.scoring.finite import why_not_finite
from alm_pipeline.tokenization.chat.template import apply_template
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from alm_pipeline.vocabulary.framing import plain_backend
from storage.errors import UserError

_COLDEST = 1e-4
"""the smallest temperature by which any logit of float16 can be divided in float32"""


class TextStream(BaseStreamer):
    """Passes the text of one row's new tokens to `write`, in whole characters.

    The bytes of a character that is never completed are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, write: Callable[[str], Any]) -> None:
        self._backend, self._write = tokenizer.backend_tokenizer, write
        self._stream, self._is_prompt = DecodeStream(skip_special_tokens=True), True

    def put(self, value: Tensor) -> None:
        """Receive the prompt [1, S] first, then each new token [1]."""
        if self._is_prompt:
            # some decoders write the first token of a text differently
            self._stream = DecodeStream(value[0].tolist(), skip_special_tokens=True)
            self._is_prompt = False
            return
        for id_ in value.tolist():
            if text := self._stream.step(self._backend, id_):
                self._write(text)

    def end(self) -> None:
        """Do nothing: only bytes that are not a character have not been written."""


class FiniteLogits(LogitsProcessor):
    """Raises UserError for logits that are NaN or +∞: any token could be taken for the likeliest."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if (scores.isnan() | (scores == torch.inf)).any():
            raise UserError(f"{self.name}: its logits are NaN or infinite: {why_not_finite(self.dtype)}")
        return scores


def generate_text(
    name: str,
    prompt: str,
    write: Callable[[str], Any],
    *,
    max_tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    chat: bool = False,
    template: TemplateChoice | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    tokenizer_name: str | None = None,
    hypernetwork: str | None = None,
) -> None:
    """Continue the prompt with a model or ensemble, greedily at temperature 0.

    With a `hypernetwork` of the model it uses the tokenizer of that name. With `chat` the prompt is a user's message in
    the tokenizer's chat template, or in `template`. Raises UserError if the model does not exist, has no chat template,
    or computes logits that are NaN, if the prompt has no tokens, or more with `max_tokens` than the model's context,
    and for settings that nothing reads.
    """
    if 0 < temperature < _COLDEST:
        raise UserError(f"temperature {temperature} is too small to divide by: use 0, which takes the likeliest token")
    if not temperature:
        refuse_unread("temperature 0 draws nothing", top_p=(top_p, 1.0), seed=(seed, None))
    settings: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    refuse_settings_of_ensembles([name], **settings)
    require_device(device)
    chat = chat or template is not None
    if not hypernetwork:
        require_prompts(name, template, chat=chat)
    others = {"template": template, "tokenizer_name": tokenizer_name, "hypernetwork": hypernetwork}
    model, tokenizer = load(name, **settings, **others)  # type: ignore[arg-type]
    inputs = _inputs(model, tokenizer, name, _chat(tokenizer, name, prompt) if chat else prompt, special=not chat)
    _require_room(model, name, inputs["input_ids"].shape[1], max_tokens)
    # without a top_k, transformers samples from the 50 likeliest tokens
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    if seed is not None:
        torch.manual_seed(seed)
    _generate(model, tokenizer, name, inputs, write, max_new_tokens=max_tokens, **sampling)


def greedy_continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, prompt: str, max_tokens: int
) -> str:
    """Return how a loaded model continues a text, greedily. `name` is used in errors."""
    parts: list[str] = []
    inputs = _inputs(model, tokenizer, name, prompt, special=True)
    _generate(model, tokenizer, name, inputs, parts.append, max_new_tokens=max_tokens)
    return "".join(parts)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    inputs: dict[str, Tensor],
    write: Callable[[str], Any],
    **settings: Any,
) -> None:
    with generating_as_asked(model):
        model.generate(  # type: ignore[operator]
            **inputs,
            **settings,
            streamer=TextStream(tokenizer, write),
            logits_processor=[FiniteLogits(name, str(model.dtype).removeprefix("torch."))],
        )


def _require_room(model: PreTrainedModel, name: str, prompt: int, max_tokens: int) -> None:
    """Raise UserError if a prompt of this number of tokens can't be continued."""
    if not prompt:
        raise UserError(f"PROMPT: has no tokens, and {name} has none that begins a text: write some text to continue")
    length = context_length(model.config)
    if length is not None and prompt + max_tokens > length:
        fix = f"set --max-tokens to at most {length - prompt:,}" if prompt < length else "shorten the prompt"
        raise UserError(
            f"{name}: a prompt of {prompt:,} tokens and {max_tokens:,} new ones are more than its context of "
            f"{length:,}: {fix}"
        )


def _chat(tokenizer: PreTrainedTokenizerFast, name: str, prompt: str) -> str:
    if not tokenizer.chat_template:
        raise UserError(f"{name}: its tokenizer has no chat template: leave --chat out")
    return apply_template(tokenizer, [{"role": "user", "content": prompt}])


def _inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, text: str, *, special: bool
) -> dict[str, Tensor]:
    if isinstance(model, EnsembleModel):
        return dict(model.encode([text], add_special_tokens=special))
    row = plain_backend(tokenizer.backend_tokenizer).encode(text, add_special_tokens=special).ids
    check_rows(row, model, tokenizer, name)
    ids = torch.tensor([row], device=model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
