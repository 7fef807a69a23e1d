"""Loads models and ensembles by name, and makes ensembles of models in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config.fields.repeated import refuse_repeated
from alm_pipeline.ensemble.config import (
    EnsembleConfig,
    Mean,
    MemberConfig,
    SharedTokens,
    ensemble_file,
    ensemble_or_model,
    read_config,
    refuse_repeated_members,
)
from alm_pipeline.ensemble.members import AlignedMember, EnsembleMember, RetokenizedMember
from alm_pipeline.ensemble.model import EnsembleModel, EnsembleModelConfig, lead_generation_config
from alm_pipeline.ensemble.retokenization import Retokenizer
from alm_pipeline.ensemble.vocabulary import Longs, Respeller, counterparts, existing_ids, same_vocabulary
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork
from alm_pipeline.models.configuration import context_length
from alm_pipeline.models.head_vocabulary import check_rows
from alm_pipeline.models.loading import embedding_rows
from alm_pipeline.models.output_head import check_output_head
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.baselines.mined_mapping import mined_mapping
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.swap import swap_tokenizer
from alm_pipeline.transfer.zero_step import exchanged_tokenizer
from alm_pipeline.vocabulary.byte_view import byte_view, check_vocabulary
from alm_pipeline.vocabulary.framing import special_tokens_around
from storage.errors import UserError
from storage.folders import stored_folder


@dataclass(frozen=True)
class LoadedMember:
    """A model in memory, its tokenizer and its weight in the ensemble."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    weight: float = 1.0
    name: str = "a member"
    """used in errors"""


def load(
    name: str,
    dtype: str = "float32",
    device: str | None = None,
    *,
    trust_remote_code: bool = False,
    template: TemplateChoice | None = None,
    tokenizer_name: str | None = None,
    hypernetwork: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a model or an ensemble by name, with the tokenizer to use; `template` replaces its chat template.

    With a `hypernetwork` of the model it has the tokenizer of that name. All settings but the template are for a model:
    an ensemble's file has its own. Raises UserError if the name does not exist, or if the two do not belong together.
    """
    file = ensemble_file(name)
    _require_both(tokenizer_name, hypernetwork, is_ensemble=file is not None)
    if file is None:
        settings = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        settings |= {"tokenizer": tokenizer_name, "hypernetwork": hypernetwork}
        model, tokenizer = _model(MemberConfig.model_validate({"model": name, **settings}))
    else:
        model = load_ensemble(file)
        tokenizer = model.tokenizer
    return model, LoadedTokenizer(name, tokenizer, template=template).fast


def require_models(names: Sequence[str], *, trust_remote_code: bool = False) -> None:
    """Raise UserError if a model or ensemble does not exist, or is named twice: before the first is measured."""
    refuse_repeated(map(ensemble_or_model, names))
    for name in names:
        file = ensemble_file(name)
        alone = MemberConfig(model=name, trust_remote_code=trust_remote_code)
        for member in read_config(file).members if file else (alone,):
            ModelReference(local_name(member.model), member.trust_remote_code).load_config()


def require_prompts(name: str, template: TemplateChoice | None, *, chat: bool) -> None:
    """Raise UserError if a model's prompts have no chat template, or an invalid one. The model is not loaded."""
    if not chat and template is None:
        return
    file = ensemble_file(name)
    lead = read_config(file).members[0] if file else MemberConfig(model=name)
    own = TemplateChoice.of("template", lead.template)
    tokenizer = LoadedTokenizer(local_name(lead.tokenizer or lead.model), template=template or own)
    if not tokenizer.chat_template and not lead.hypernetwork:  # which may give it the model's own
        raise UserError(f"{name}: its tokenizer has no chat template: leave --chat out")


def _require_both(tokenizer: str | None, hypernetwork: str | None, *, is_ensemble: bool) -> None:
    if bool(tokenizer) != bool(hypernetwork):
        raise UserError(
            "--tokenizer and --hypernetwork belong together: the network (alm hypernet trains one) gives the model the "
            "tokenizer of that name"
        )
    if tokenizer and is_ensemble:
        raise UserError("--tokenizer: an ensemble's file names the tokenizer and the hypernetwork of each member")


def load_ensemble(source: EnsembleConfig | Path | str) -> EnsembleModel:
    """Load the ensemble of a configuration, a file or a folder.

    Raises UserError if the file is not valid, a member is there twice or cannot be loaded, or they share no token.
    """
    if isinstance(source, EnsembleConfig):
        config = source
        refuse_repeated_members(config.members)
    else:
        file = ensemble_file(str(source))
        if file is None:
            raise UserError(f"{source}: is not an ensemble: pass a YAML file, or a folder with an ensemble.yaml")
        config = read_config(file)
    members = [LoadedMember(*_model(member), member.weight, member.model) for member in config.members]
    return ensemble_of(members, config.mean, config.vocabulary)


def _model(member: MemberConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    reference = ModelReference(local_name(member.model), member.trust_remote_code)
    model = reference.load(member.dtype, device=member.device)
    tokenizer = LoadedTokenizer(local_name(member.tokenizer)) if member.tokenizer else reference.tokenizer
    if member.hypernetwork:
        tokenizer = _exchanged(model, reference, tokenizer, member.hypernetwork)
    return model, tokenizer.with_template(TemplateChoice.of("template", member.template)).fast


def _exchanged(
    model: PreTrainedModel, reference: ModelReference, named: LoadedTokenizer, hypernetwork: str
) -> LoadedTokenizer:
    """Give the model this tokenizer, in place, and return it with the special tokens that it then has.

    Raises UserError if the hypernetwork is another model's.
    """
    setting = Initialization("hypernetwork", hypernetwork=Hypernetwork.load(hypernetwork))
    setting.require_source(reference)
    target = LoadedTokenizer.of(exchanged_tokenizer(reference.tokenizer, named))
    swap_tokenizer(model, reference.tokenizer, target, setting)
    return target


def local_name(name: str) -> str:
    """Return a name to load a model by: for a stored student's URL, the folder that it is fetched into."""
    return str(stored_folder(name).fetch()) if "://" in name else name


def ensemble_of(
    loaded: Sequence[LoadedMember], mean: Mean = "probabilities", vocabulary: SharedTokens = "shared"
) -> EnsembleModel:
    """Make an ensemble of models in memory. The first one leads, even if its weight is 0.

    Raises UserError if a tokenizer is not its model's, or the members have no token in common.
    """
    lead, weighted = loaded[0], [member for member in loaded if member.weight]
    for member in weighted:
        view = byte_view(member.tokenizer.backend_tokenizer)
        check_vocabulary(view, embedding_rows(member.model), member.name)
        check_output_head(member.model)
    ids = [_readable_ids(lead, member, vocabulary) for member in weighted]
    tokens = existing_ids(lead.tokenizer)
    shared = (tokens >= 0) & np.all([ids_V >= 0 for ids_V in ids], axis=0)
    if not shared.any():
        raise UserError(f"{', '.join(member.name for member in loaded)}: have no token in common")
    members = [_member(lead, member, ids_V, shared, vocabulary) for member, ids_V in zip(weighted, ids, strict=True)]
    all_aligned = all(isinstance(member, AlignedMember) for member in members)
    readable = Respeller(byte_view(lead.tokenizer.backend_tokenizer), shared) if all_aligned else None
    shared_ids = torch.from_numpy(np.flatnonzero(shared))
    config = _config(lead, weighted, len(tokens))
    ensemble = EnsembleModel(members, mean, lead.tokenizer, shared_ids, readable, config)
    ensemble.generation_config = lead_generation_config(lead.model, set(shared_ids.tolist()))
    return ensemble


def _readable_ids(lead: LoadedMember, member: LoadedMember, vocabulary: SharedTokens) -> Longs:
    """[V] the member's id for each of the lead's, −1 if it has none, or none with a row in its embedding."""
    ids_V = _member_ids(lead, member, vocabulary)
    return np.where(ids_V < embedding_rows(member.model), ids_V, -1)


def _member_ids(lead: LoadedMember, member: LoadedMember, vocabulary: SharedTokens) -> Longs:
    """[V] the member's id for each of the lead's, −1 if it has none."""
    if same_vocabulary(lead.tokenizer, member.tokenizer):
        return existing_ids(lead.tokenizer)
    paired = counterparts(lead.tokenizer, member.tokenizer)
    match vocabulary:
        case "shared":
            return paired
        case "mined":
            views = [byte_view(side.tokenizer.backend_tokenizer) for side in (member, lead)]
            views[0] = views[0].within(embedding_rows(member.model))
            specials = np.flatnonzero(views[1].special)
            special_pairs = dict(zip(specials.tolist(), paired[specials].tolist(), strict=True))
            return mined_mapping(views[0], views[1], special_pairs)
        case _:
            assert_never(vocabulary)


def _member(
    lead: LoadedMember, member: LoadedMember, ids: Longs, shared: np.ndarray, vocabulary: SharedTokens
) -> EnsembleMember:
    columns, same = torch.from_numpy(ids[shared]), same_vocabulary(lead.tokenizer, member.tokenizer)
    if vocabulary == "mined" and not same:
        retokenize = Retokenizer(lead.tokenizer, member.tokenizer)

        def context(ids: Sequence[int]) -> tuple[int, ...]:
            member_ids = retokenize(ids)
            check_rows(member_ids, member.model, member.tokenizer, member.name)
            return member_ids

        return RetokenizedMember(member.model, columns, member.weight, context)
    # with `mined`, other members read text, so any token of the lead may occur
    inputs = ids.copy() if vocabulary == "mined" else np.where(shared, ids, -1)
    pad = lead.tokenizer.pad_token_id
    if pad is not None and inputs[pad] < 0:
        # `generate` writes it after a finished row, where its prediction does not matter
        inputs[pad] = 0
    prefix = [] if same else special_tokens_around(member.tokenizer.backend_tokenizer)[0]
    check_rows(prefix, member.model, member.tokenizer, member.name)
    tokens = lead.tokenizer.convert_ids_to_tokens
    return AlignedMember(
        member.model, columns, member.weight, torch.from_numpy(inputs), prefix, lambda id_: str(tokens(id_))
    )


def _config(lead: LoadedMember, members: Sequence[LoadedMember], rows: int) -> EnsembleModelConfig:
    """Return the configuration. Its context is the shortest member's, less the tokens that members put before texts."""
    lengths = [context_length(member.model.config) for member in members]
    others = [member.tokenizer for member in members if not same_vocabulary(lead.tokenizer, member.tokenizer)]
    longest_prefix = max((len(special_tokens_around(other.backend_tokenizer)[0]) for other in others), default=0)
    limits = [length - longest_prefix for length in lengths if length]
    roles: dict[str, Any] = {
        f"{role}_token_id": getattr(lead.tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")
    }
    sizes: dict[str, Any] = {"vocab_size": rows, "max_position_embeddings": min(limits, default=None)}
    return EnsembleModelConfig(**sizes, **roles)
