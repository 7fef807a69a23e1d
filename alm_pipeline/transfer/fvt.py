"""Fast vocabulary transfer (FVT): the initial embeddings of a new vocabulary (Gee et al. 2022).

A special token takes its counterpart's row, a token of the same bytes is copied, any other is the mean of the
pieces that the source tokenizer cuts its bytes into, and what is left is drawn from the distribution of the source's
rows.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.models import embedding_rows
from alm_pipeline.tokenization.byte_view import ByteView, byte_view, tokens_by_spelling
from storage.errors import UserError

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class VocabularyMap:
    """Which source rows make up each target row; no rows means a draw."""

    pieces: tuple[tuple[int, ...], ...]

    def counts(self) -> dict[str, int]:
        """How many rows are copied, composed of several, and drawn."""
        return dict(Counter({0: "drawn", 1: "copied"}.get(len(ids), "composed") for ids in self.pieces))


def map_vocabulary(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> VocabularyMap:
    """The source pieces of every target id."""
    source_view, target_view = byte_view(source.backend_tokenizer), byte_view(target.backend_tokenizer)
    cutter = _Cutter(source, source_view)
    specials = special_counterparts(source, target)
    pieces = []
    for id_, spelling in enumerate(target_view.spelling):
        special = target_view.special[id_]
        own = (specials[id_],) if id_ in specials else ()
        pieces.append(own if special else cutter.cut(spelling))
    return VocabularyMap(tuple(pieces))


class _Cutter:
    """Cuts bytes into source tokens as the source tokenizer would."""

    def __init__(self, source: PreTrainedTokenizerFast, view: ByteView) -> None:
        self.backend, self.view = source.backend_tokenizer, view
        self.ids = tokens_by_spelling(self.backend, view)
        self.longest = max(map(len, self.ids), default=0)

    def cut(self, spelling: bytes) -> tuple[int, ...]:
        if spelling in self.ids:
            return (self.ids[spelling],)
        try:
            ids = self.backend.encode(spelling.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:  # a part of a character
            return self._longest_matches(spelling)
        spelled = b"".join(self.view.spelling[id_] for id_ in ids)
        return tuple(ids) if spelled == spelling else self._longest_matches(spelling)

    def _longest_matches(self, spelling: bytes) -> tuple[int, ...]:
        ids, start = [], 0
        while start < len(spelling):
            ends = range(min(len(spelling), start + self.longest), start, -1)
            end = next((end for end in ends if spelling[start:end] in self.ids), None)
            if end is None:
                return ()
            ids.append(self.ids[spelling[start:end]])
            start = end
        return tuple(ids)


def special_counterparts(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    """Target id → source id: the same literal, otherwise the same role."""
    known = source.get_vocab()
    pairs = {id_: known[token] for token, id_ in target.get_added_vocab().items() if token in known}
    for role in ROLES:
        ours, theirs = getattr(target, f"{role}_id"), getattr(source, f"{role}_id")
        if ours is not None and theirs is not None:
            pairs.setdefault(ours, theirs)
    return pairs


def transfer_vocabulary(
    model: PreTrainedModel, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, seed: int = 0
) -> VocabularyMap:
    """Put the target tokenizer on the model, in place: embeddings, head, vocabulary size and special ids.

    Raises UserError when the source tokenizer has tokens that the model's embedding lacks.
    """
    mapping = map_vocabulary(source, target)
    rows = embedding_rows(model)
    if max((id_ for ids in mapping.pieces for id_ in ids), default=0) >= rows:
        raise UserError(f"{source.name_or_path}: this tokenizer has ids beyond the model's {rows} embedding rows")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    layers = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]
    made = [
        {name: compose_rows(value.detach(), mapping, seed) for name, value in layer.named_parameters(recurse=False)}
        for layer in layers
    ]
    model.resize_token_embeddings(len(mapping.pieces), mean_resizing=False)
    layers = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]
    for layer, values in zip(layers, made, strict=True):
        for name, value in values.items():
            layer.get_parameter(name).data.copy_(value)
    _carry_special_ids(model, source, target)
    return mapping


def compose_rows(source: Tensor, mapping: VocabularyMap, seed: int) -> Tensor:
    """[target rows, ...] means of source rows; draws come from N(mean, std) of the source's rows."""
    flat = [id_ for ids in mapping.pieces for id_ in ids]
    lengths = torch.tensor([len(ids) for ids in mapping.pieces])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    rows = source[torch.tensor(flat, dtype=torch.int64)].double()
    sums = torch.zeros(len(lengths), *source.shape[1:], dtype=torch.float64).index_add_(0, owner, rows)
    means = sums / lengths.clamp(min=1).reshape(-1, *[1] * (source.dim() - 1))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(means.shape, generator=generator, dtype=torch.float64) * source.double().std(0)
    missing = (lengths == 0).reshape(-1, *[1] * (source.dim() - 1))
    return torch.where(missing, drawn + source.double().mean(0), means).to(source.dtype)


def _carry_special_ids(
    model: PreTrainedModel, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast
) -> None:
    """Rewrite the special ids of the configurations: the same token's new id, or the target's of that role."""
    for config in filter(None, (model.config, model.generation_config)):
        for role in ("bos", "eos", "pad"):
            field = f"{role}_token_id"
            current = getattr(config, field, None)
            ids = current if isinstance(current, list) else [current]
            carried = [_counterpart(id_, role, source, target) for id_ in ids if id_ is not None]
            found = [id_ for id_ in carried if id_ is not None]
            setattr(config, field, found if isinstance(current, list) else next(iter(found), None))


def _counterpart(id_: int, role: str, source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> int | None:
    token = source.convert_ids_to_tokens(id_)
    vocabulary = target.get_vocab()
    return vocabulary[token] if token in vocabulary else getattr(target, f"{role}_token_id")
