"""What a model keeps when it gets a new tokenizer: how it begins texts, ends its turns and generates.

The chat template belongs to the tokenizer (`special_tokens` decides which one is kept). This module adapts the model's
configurations: each token id in them becomes the new id of the same token, or of the target's token in the same role.
"""

import logging
from collections.abc import Iterable

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.models.configuration import text_config
from alm_pipeline.new_tokenizer.byte_level import control_tokens, template_texts
from alm_pipeline.transfer.fvt import chat_tokens, special_ids
from storage.schemas import TokenKind

logger = logging.getLogger(__name__)

_ROLES = ("bos", "eos", "pad")
_OTHER_IDS = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
)
"""generation settings that contain ids of the source tokenizer and cannot be converted"""


def carry_over(model: PreTrainedModel, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> None:
    """Rewrite the ids in `model.config` and `model.generation_config`, in place.

    A role without an id stays without one. Settings with other ids are dropped. Logs a warning for each of them, and if
    the chat template is lost.
    """
    new_ids = _NewIds(source, target)
    configs = [model.config, text_config(model.config), model.generation_config]
    for config in {id(config): config for config in configs if config is not None}.values():
        for role in _ROLES:
            current = getattr(config, f"{role}_token_id", None)
            if current is not None:
                ids = new_ids.of(current if isinstance(current, list) else [current], role)
                setattr(config, f"{role}_token_id", ids if isinstance(current, list) else next(iter(ids), None))
    _carry_media(model, source, target)
    _drop_others(model)
    if source.chat_template and not target.chat_template:
        logger.warning(
            "%s: the tokenizer has no chat template, but the model had one: set special_tokens to source to keep it",
            target.name_or_path,
        )


def end_with_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let generation end at the token with which the tokenizer's chat template ends a turn, if it has one. In place."""
    end, settings = chat_tokens(tokenizer).get(TokenKind.END_OF_TURN), model.generation_config
    if end is None or settings is None:
        return
    current = settings.eos_token_id
    ids = current if isinstance(current, list) else [] if current is None else [current]
    if end not in ids:
        settings.eos_token_id = [*ids, end]


def carry_template(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> None:
    """Give the target the source's chat template and roles, in place, if it has the tokens that they use.

    A template that writes tokens which the target lacks is not carried over; a warning names one of them.
    """
    # not its whole vocabulary: an ordinary token `<s>` is text
    added = target.get_added_vocab()
    for role, token in source.special_tokens_map.items():
        if isinstance(token, str) and token in added:
            setattr(target, role, token)
    if not source.chat_template:
        return
    texts = list(template_texts(source))
    missing = {token.content for token in control_tokens(source)} - added.keys()
    if written := sorted(token for token in missing if any(token in text for text in texts)):
        logger.warning("%s: its chat template writes %s, which the tokenizer lacks", source.name_or_path, written[0])
    else:
        target.chat_template = source.chat_template


def _carry_media(model: PreTrainedModel, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> None:
    """Rewrite the ids for images and sound in a multimodal model's configuration, in place.

    Where the target lacks the token, the id becomes one beyond its vocabulary: an ordinary token must not stand for an
    image. Such a model reads text only, which a warning says.
    """
    vocabulary, lost = target.get_vocab(), []
    free = max([*vocabulary.values(), text_config(model.config).vocab_size - 1]) + 1
    for setting, id_ in _media_ids(model):
        token = str(source.convert_ids_to_tokens(id_)) if id_ < len(source) else ""
        if token not in vocabulary:
            lost.append(setting)
        setattr(model.config, setting, vocabulary.get(token, free + len(lost) - 1))
    if lost:
        logger.warning(
            "%s: has no token for the model's %s: the model with this tokenizer reads text only",
            target.name_or_path,
            ", ".join(lost),
        )


def _media_ids(model: PreTrainedModel) -> list[tuple[str, int]]:
    """Return the settings of a multimodal model that name a token, with the token's id."""
    if text_config(model.config) is model.config:
        return []
    roles = {f"{role}_token_id" for role in _ROLES} | set(_OTHER_IDS)
    settings = vars(model.config).items()
    return [
        (name, id_)
        for name, id_ in settings
        if name.endswith(("_token_id", "_token_index")) and name not in roles and isinstance(id_, int) and id_ >= 0
    ]


class _NewIds:
    """Maps the source's special ids to the target's."""

    def __init__(self, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> None:
        self.source, self.target, self.vocabulary = source, target, target.get_vocab()
        self.source_special, self.target_special = special_ids(source), special_ids(target)
        target_ids, source_ids = chat_tokens(target), chat_tokens(source)
        self.by_chat = {source_ids[kind]: id_ for kind, id_ in target_ids.items() if kind in source_ids}

    def of(self, ids: Iterable[int], role: str) -> list[int]:
        """Return the unique new ids; empty if the target has no token in this role."""
        new_ids = (self._of(id_, role) for id_ in ids)
        return list(dict.fromkeys(id_ for id_ in new_ids if id_ is not None))

    def _of(self, id_: int, role: str) -> int | None:
        in_role: int | None = getattr(self.target, f"{role}_token_id")
        # the same literal comes before the role: a padding token that also ends turns must not end texts as padding
        token = self.source.convert_ids_to_tokens(id_) if id_ < len(self.source) else None
        # a special token is not the target's ordinary token of that literal (Qwen's `</s>`)
        same = self.target_special if token in self.source_special else self.vocabulary
        if token in same:
            return same[token]
        return self.by_chat.get(id_, in_role) if role == "eos" else in_role


def _drop_others(model: PreTrainedModel) -> None:
    for name in _OTHER_IDS:
        if getattr(model.generation_config, name, None) is not None:
            logger.warning("generation_config.%s contains ids of the old tokenizer: dropped", name)
            setattr(model.generation_config, name, None)
