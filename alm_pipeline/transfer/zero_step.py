"""Zero-step transfer: gives a model a new tokenizer, without corpus or training.

from alm_pipeline.transfer.zero_step import transfer

print(transfer("demo:smollm2-135m-instruct", "Qwen/Qwen3-0.6B", "smollm2-qwen").counts)
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from alm_pipeline.config import Level, Method, SpecialTokens
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.config.student import require_hypernetwork
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.special_tokens import keeps_source, with_special_tokens
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from alm_pipeline.transfer.carry_over import end_with_turns
from alm_pipeline.transfer.initialization import Initialization, find_donor
from alm_pipeline.transfer.level.level import FoundLevel, set_level
from alm_pipeline.transfer.level.texts import sample_texts
from alm_pipeline.transfer.swap import swap_tokenizer
from storage.errors import UserError


class Transferred(NamedTuple):
    """How the embeddings of a model with a new tokenizer were made."""

    counts: dict[str, int]
    """the numbers of rows that were copied, composed and drawn"""
    level: FoundLevel | None
    """of the new tokens, if there are any and it is not left as it is"""


def transfer(
    source_model: str,
    target_tokenizer: str,
    folder: Path | str,
    *,
    initialization: Method = "fvt",
    level: Level = "measured",
    special_tokens: SpecialTokens = "auto",
    template: TemplateChoice | None = None,
    donor: str | None = None,
    omp_terms: int = 8,
    hypernetwork: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Transferred:
    """Write the model with the new tokenizer into a new folder, in the model's own precision.

    Models and tokenizers are folders, hub names or `demo:NAME`. `template` replaces the chat template. The settings are
    those of `student` in a configuration. The level of new tokens is measured on a sample of prose and code.

    Raises UserError if the folder exists and is not empty, or if the model, the tokenizer, the donor or the
    hypernetwork cannot be loaded or do not fit together.
    """
    _require_hypernetwork(initialization, hypernetwork)
    if initialization != "omp":
        of_omp: dict[str, tuple[object, object]] = {"donor": (donor, None), "omp_terms": (omp_terms, 8)}
        refuse_unread(f"the initialization is {initialization}, and not omp", **of_omp)
    with new_folder(Path(folder)) as written:
        reference = ModelReference(source_model, trust_remote_code)
        reference.refuse_adapter()
        donor = find_donor(initialization, donor, target_tokenizer)
        donor_model = ModelReference(donor, trust_remote_code) if donor else None
        source = reference.tokenizer
        named = LoadedTokenizer(target_tokenizer)
        target = exchanged_tokenizer(source, named, special_tokens, template)
        network = Hypernetwork.load(hypernetwork) if hypernetwork else None
        setting = Initialization(initialization, donor_model, omp_terms, hypernetwork=network)
        setting.require_source(reference)
        if donor_model:
            donor_model.load_config()  # raises if it does not exist: before the model is loaded
        model = reference.load(reference.weights_dtype, device="cpu")
        loaded = LoadedTokenizer.of(target)
        result = swap_tokenizer(model, source, loaded, setting, seed)
        found = set_level(model, result.new_V, partial(sample_texts, loaded), level)
        if template and template.template is not None:
            end_with_turns(model, target)
        with quiet_transformers():
            model.save_pretrained(written)
            target.save_pretrained(written)
        for read in (reference, donor_model, source, named, donor_model and donor_model.tokenizer):
            if read:
                read.check_unchanged()
    return Transferred(result.counts(), found)


def _require_hypernetwork(method: Method, hypernetwork: str | None) -> None:
    try:
        require_hypernetwork(method, hypernetwork)
    except ValueError as error:
        raise UserError(str(error)) from error


def exchanged_tokenizer(
    source: LoadedTokenizer,
    named: LoadedTokenizer,
    setting: SpecialTokens = "auto",
    template: TemplateChoice | None = None,
) -> PreTrainedTokenizerFast:
    """Return the target with its template, and with the source's special tokens if the setting asks for them."""
    lacks_template = template is None or template.template is None
    if keeps_source(source.fast, named.fast, setting, lacks_template=lacks_template):
        return with_special_tokens(source.with_template(template).fast, named.fast)
    return named.with_template(template).fast
