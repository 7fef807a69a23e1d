"""Ensembles out of models: by name, as a file says, or of models that are in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.ensemble.config import EnsembleConfig, Mean, MemberConfig, ensemble_file, read_config
from alm_pipeline.ensemble.members import AlignedMember, Member, RetokenizedMember
from alm_pipeline.ensemble.model import EnsembleModel, EnsembleModelConfig, lead_generation_config
from alm_pipeline.ensemble.retokenization import Retokenizer
from alm_pipeline.ensemble.vocabulary import Longs, Respeller, counterparts, existing, same_vocabulary
from alm_pipeline.models.files import length_in
from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.output_head import check_output_head
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.objective.baselines.mined_mapping import mined_mapping
from alm_pipeline.vocabulary.byte_view import byte_view, check_vocabulary
from alm_pipeline.vocabulary.framing import special_tokens_around
from storage.errors import UserError
from storage.folders import stored_folder

Vocabulary = Literal["shared", "mined"]


@dataclass(frozen=True)
class Part:
    """A model in memory, its tokenizer and its share."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    weight: float = 1.0
    name: str = "a member"
    """for errors"""


def load(
    name: str, dtype: str = "float32", device: str | None = None, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model or an ensemble by name, and the tokenizer to use with it; an ensemble's file has such settings itself.

    Raises UserError when there is no such thing.
    """
    file = ensemble_file(name)
    if file is None:
        settings = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        return _model(MemberConfig.model_validate({"model": name, **settings}))
    ensemble = load_ensemble(file)
    return ensemble, ensemble.tokenizer


def load_ensemble(source: EnsembleConfig | Path | str) -> EnsembleModel:
    """The ensemble that a configuration says, or the one in a file or folder.

    Raises UserError when the file, a member or what they have in common does not do.
    """
    if isinstance(source, EnsembleConfig):
        config = source
    else:
        file = ensemble_file(str(source))
        if file is None:
            raise UserError(f"{source}: is no ensemble: name a YAML file, or a folder with an ensemble.yaml")
        config = read_config(file)
    parts = [Part(*_model(member), member.weight, member.model) for member in config.members]
    return ensemble_of(parts, config.mean, config.vocabulary)


def _model(member: MemberConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    reference = ModelReference(local_name(member.model), member.trust_remote_code)
    model = reference.load(member.dtype, device=member.device)
    return model, load_tokenizer(local_name(member.tokenizer)) if member.tokenizer else reference.tokenizer.fast


def local_name(name: str) -> str:
    """A name that models are loaded by; of a stored student's URL the folder that it is fetched into."""
    return str(stored_folder(name).fetch()) if "://" in name else name


def ensemble_of(
    parts: Sequence[Part], mean: Mean = "probabilities", vocabulary: Vocabulary = "shared"
) -> EnsembleModel:
    """The ensemble of models in memory; the first one leads, and need not count (weight 0).

    Raises UserError where a tokenizer is not its model's, or members have no token in common.
    """
    lead, counting = parts[0], [part for part in parts if part.weight]
    for part in counting:
        view = byte_view(part.tokenizer.backend_tokenizer)
        check_vocabulary(view, embedding_rows(part.model), part.name)
        check_output_head(part.model)
    ids = [_ids_of(lead, part, vocabulary) for part in counting]
    tokens = existing(lead.tokenizer)
    shared = (tokens >= 0) & np.all([found >= 0 for found in ids], axis=0)
    if not shared.any():
        raise UserError(f"{', '.join(part.name for part in parts)}: have no token in common")
    members = [_member(lead, part, found, shared, vocabulary) for part, found in zip(counting, ids, strict=True)]
    all_aligned = all(isinstance(member, AlignedMember) for member in members)
    readable = Respeller(byte_view(lead.tokenizer.backend_tokenizer), shared) if all_aligned else None
    shared_ids = torch.from_numpy(np.flatnonzero(shared))
    config = _config(lead, counting, len(tokens))
    ensemble = EnsembleModel(members, mean, lead.tokenizer, shared_ids, readable, config)
    ensemble.generation_config = lead_generation_config(lead.model, set(shared_ids.tolist()))
    return ensemble


def _ids_of(lead: Part, part: Part, vocabulary: Vocabulary) -> Longs:
    """[V] the member's id for each of the lead's."""
    if same_vocabulary(lead.tokenizer, part.tokenizer):
        return existing(lead.tokenizer)
    paired = counterparts(lead.tokenizer, part.tokenizer)
    if vocabulary == "shared":
        return paired
    views = [byte_view(each.tokenizer.backend_tokenizer) for each in (part, lead)]
    specials = np.flatnonzero(views[1].special)
    return mined_mapping(views[0], views[1], dict(zip(specials.tolist(), paired[specials].tolist(), strict=True)))


def _member(lead: Part, part: Part, ids: Longs, shared: np.ndarray, vocabulary: Vocabulary) -> Member:
    columns, same = torch.from_numpy(ids[shared]), same_vocabulary(lead.tokenizer, part.tokenizer)
    if vocabulary == "mined" and not same:
        return RetokenizedMember(part.model, columns, part.weight, Retokenizer(lead.tokenizer, part.tokenizer))
    # beside a member that reads text, any token is readable
    inputs = ids.copy() if vocabulary == "mined" else np.where(shared, ids, -1)
    pad = lead.tokenizer.pad_token_id
    if pad is not None and inputs[pad] < 0:
        # `generate` writes it behind a finished row, where nobody reads on
        inputs[pad] = 0
    prefix = [] if same else special_tokens_around(part.tokenizer)[0]
    tokens = lead.tokenizer.convert_ids_to_tokens
    return AlignedMember(
        part.model, columns, part.weight, torch.from_numpy(inputs), prefix, lambda id_: str(tokens(id_))
    )


def _config(lead: Part, parts: Sequence[Part], rows: int) -> EnsembleModelConfig:
    """As long a context as the shortest member's, but for the tokens that some put in front."""
    lengths = [length_in(part.model.config.get_text_config().to_dict()) for part in parts]
    others = [part.tokenizer for part in parts if not same_vocabulary(lead.tokenizer, part.tokenizer)]
    front = max((len(special_tokens_around(other)[0]) for other in others), default=0)
    limits = [length - front for length in lengths if length]
    roles: dict[str, Any] = {
        f"{role}_token_id": getattr(lead.tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")
    }
    sizes: dict[str, Any] = {"vocab_size": rows, "max_position_embeddings": min(limits, default=None)}
    return EnsembleModelConfig(**sizes, **roles)
