"""The special tokens of a new vocabulary: its own, or those that the model was trained with.

A model that keeps the source's special tokens in the target's vocabulary begins texts, takes turns and ends them as it
has learned. Moving Gemma to Qwen's special tokens costs 9 points (2503.20083).
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, assert_never

from tokenizers import AddedToken, Tokenizer

from alm_pipeline.config import SpecialTokens
from alm_pipeline.new_tokenizer.byte_level import control_tokens, same_frame, wrapped_like
from alm_pipeline.vocabulary.framing import special_tokens_around
from storage.errors import UserError

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast

_RESERVED = "<|reserved {}|>"


def keeps_source(
    source: "PreTrainedTokenizerFast",
    target: "PreTrainedTokenizerFast",
    setting: SpecialTokens,
    *,
    lacks_template: bool = True,
) -> bool:
    """Return whether the target gets the source's special tokens.

    With `auto`, it does if the source puts tokens before a text, names a begin-of-text token or has a chat template,
    and the target does not. Without `lacks_template`, the target has a template of its own that is not seen here.
    """
    match setting:
        case "source":
            return True
        case "target":
            return False
        case "auto":
            return _lacks(target, source, lacks_template=lacks_template)
        case _:
            assert_never(setting)


def _lacks(target: "PreTrainedTokenizerFast", source: "PreTrainedTokenizerFast", *, lacks_template: bool) -> bool:
    begins, target_begins = (bool(special_tokens_around(each.backend_tokenizer)[0]) for each in (source, target))
    named = source.bos_token is not None and target.bos_token is None
    templates = lacks_template and source.chat_template is not None and target.chat_template is None
    return (begins and not target_begins) or named or templates


def with_special_tokens(
    source: "PreTrainedTokenizerFast", target: "PreTrainedTokenizerFast"
) -> "PreTrainedTokenizerFast":
    """Return a tokenizer of the target's ordinary tokens and the source's special tokens, roles and chat template.

    Ordinary tokens keep their ids. The source's special tokens take the ids of the target's special tokens, and then
    ids after the vocabulary; a token that both have keeps its id. Ids that remain free become reserved tokens.
    Raises UserError for a target whose vocabulary needs its own special tokens.
    """
    backend = _backend(_exchanged(target, control_tokens(source)), target.name_or_path)
    backend.post_processor = same_frame(source.backend_tokenizer.post_processor, backend)
    return wrapped_like(source, backend)


def _exchanged(target: "PreTrainedTokenizerFast", wanted: Sequence[AddedToken]) -> dict[str, Any]:
    """Return the target's tokenizer.json with other control tokens."""
    state: dict[str, Any] = json.loads(target.backend_tokenizer.to_str())
    added = {token["id"]: token for token in state["added_tokens"]}
    gone = {token.content for token in control_tokens(target)} - {token.content for token in wanted}
    gone.discard(_unknown(state["model"]))
    free = [id_ for id_, token in sorted(added.items()) if token["content"] in gone]
    known = target.get_vocab()
    placed = _placed([token.content for token in wanted if token.content not in known], free, max(known.values()) + 1)
    unchanged = {id_: token for id_, token in added.items() if id_ not in free}
    new = {known.get(token.content, placed.get(token.content, -1)): _entry(token) for token in wanted}
    last = max([*(set(known.values()) - set(free)), *new])
    reserved = [id_ for id_ in free if id_ < last and id_ not in new]
    new |= {id_: _entry(AddedToken(_RESERVED.format(k), special=True)) for k, id_ in enumerate(reserved)}
    _rename(state["model"], {id_: entry["content"] for id_, entry in new.items()})
    state["added_tokens"] = [{**token, "id": id_} for id_, token in sorted((unchanged | new).items())]
    state["post_processor"] = None
    return state


def _placed(literals: Sequence[str], free: Sequence[int], end: int) -> dict[str, int]:
    """Assign free ids first, and then those from `end` on."""
    further_ids = range(end, end + max(0, len(literals) - len(free)))
    return dict(zip(literals, [*free[: len(literals)], *further_ids], strict=True))


def _entry(token: AddedToken) -> dict[str, Any]:
    flags = ("content", "single_word", "lstrip", "rstrip", "special")
    return {**{flag: getattr(token, flag) for flag in flags}, "normalized": False}


def _unknown(model: Mapping[str, Any]) -> str | None:
    """Return the unknown token that the model names: the model can't be loaded without it."""
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _rename(model: dict[str, Any], literals: Mapping[int, str]) -> None:
    """Rename ids in the model's vocabulary, in place. Ids of tokens that are only added tokens are not in it."""
    if model["type"] == "Unigram":
        model["vocab"] = [[literals.get(id_, piece), score] for id_, (piece, score) in enumerate(model["vocab"])]
    else:
        model["vocab"] = {literals.get(id_, token): id_ for token, id_ in model["vocab"].items()}


def _backend(state: Mapping[str, Any], name: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(
            f"{name}: its vocabulary needs its own special tokens ({error}): set special_tokens to target"
        ) from error
