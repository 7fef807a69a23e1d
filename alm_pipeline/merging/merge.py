"""Merges a base model and its tuned child into one folder, one tensor at a time.

Post-training costs a model calibration, and a model between a base and its child may have most of what both are good at
(2510.17426).
"""

from functools import partial
from math import prod
from pathlib import Path

import torch
from transformers import GenerationConfig

from alm_pipeline.merging.card import merge_card
from alm_pipeline.merging.parents import check_rule, open_parents
from alm_pipeline.merging.rule import MergeRule, Parent
from alm_pipeline.models.configuration import text_config
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.loaded_files import GENERATION_CONFIG
from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.transfer.weights import write_weights


def merge_models(
    base: str,
    tuned: str,
    folder: Path | str,
    rule: MergeRule | None = None,
    *,
    template: Parent = "tuned",
    trust_remote_code: bool = False,
) -> None:
    """Write the model between a base and its tuned child into a new folder.

    Models are folders, hub names or `demo:NAME`. The merged model has the tokenizer, chat template, configuration and
    generation settings of the parent `template`, and its weights have the wider dtype of the two. The same parents and
    rule give the same bytes.

    Raises UserError if the folder exists and is not empty, if the rule's numbers are out of range, or if the parents do
    not fit: other architectures, tensors, shapes or token ids, adapters, or quantized weights. Warns of settings in
    which their configurations differ.
    """
    rule = rule or MergeRule()
    check_rule(rule)
    models = ModelReference(base, trust_remote_code), ModelReference(tuned, trust_remote_code)
    chosen = models[0] if template == "base" else models[1]
    with open_parents(*models, chosen) as parents, new_folder(Path(folder)) as written:
        sizes = {name: prod(shape) for name, shape in parents.shapes.items()}
        write_weights(written, sizes, partial(parents.merged, rule), parents.dtype)
        _write_settings(chosen, written, parents.dtype)
        (written / "README.md").write_text(merge_card(*models, rule, chosen.name), encoding="utf-8")
        for parent in models:
            parent.check_unchanged()
            parent.tokenizer.check_unchanged()


def _write_settings(parent: ModelReference, folder: Path, dtype: torch.dtype) -> None:
    """Write the parent's configuration, generation settings and tokenizer."""
    config = parent.load_config()
    config.dtype = text_config(config).dtype = dtype
    with quiet_transformers():
        config.save_pretrained(folder)
        if (parent.folder / GENERATION_CONFIG).is_file():
            GenerationConfig.from_pretrained(parent.folder).save_pretrained(folder)
        parent.tokenizer.fast.save_pretrained(folder)
