"""Reads transformers' report about loaded weights: which tensors are missing, unexpected or of another shape.

transformers draws a missing tensor at random and logs that. Here it is an error, with the likely cause. Tied tensors
and buffers that are not stored are already left out of its report, as are leftovers that the model's class lists.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from alm_pipeline.runtime.progress import logger
from storage.errors import UserError

_LEFTOVERS = re.compile(
    # buffers that older versions stored, and that are computed today
    r"(^|\.)(rotary_emb\.inv_freq|position_ids|attn\.masked_bias|attention\.masked_bias)$"
)
_OTHER_SENSES = re.compile(
    r"(^|\.)(vision_tower|vision_model|vision_encoder|vision_embed_tokens|visual|image_newline|embed_vision"
    r"|multi_modal_projector|multimodal_projector|mm_projector|audio_tower|audio_model|embed_audio)(\.|$)"
)
"""Parts of a model that read images or sound: texts are not affected by them."""
_ADAPTER = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|ia3_l|original_module)(\.|$)|(^|\.)prompt_embeddings")
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "base_model.model": "peft",
}
"""What wrappers put into the names of tensors that are saved from them."""
_SHOWN = 3


def check_weights(name: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Raise UserError unless every tensor of the model was stored, with its shape, and every stored one was used.

    `report` is what `from_pretrained(output_loading_info=True)` returned.
    """
    stored = report["unexpected_keys"]
    unexpected = {key for key in stored if not _LEFTOVERS.search(key) and not _OTHER_SENSES.search(key)}
    if missing := _without_other_senses(name, set(report["missing_keys"])):
        raise UserError(
            f"{name}: its weights lack {_count(missing)} of the model ({_names(missing)}), which would be drawn at "
            f"random: {_likely_cause(missing, unexpected)}"
        )
    if report["mismatched_keys"]:
        raise UserError(f"{name}: {_mismatch(report['mismatched_keys'])}")
    if unexpected:
        _report_unexpected(name, model, unexpected)


def check_stored_types(name: str, model: PreTrainedModel, files: Iterable[Path]) -> None:
    """Raise UserError if safetensors files hold integers or booleans for weights that are real numbers.

    transformers casts them. They are quantized weights whose configuration does not say so.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    other = {key: kind for file in files for key, kind in _stored_types(file) if not kind.startswith(("F", "BF"))}
    real = [f".{key}" for key, value in model.named_parameters() if value.is_floating_point()] if other else []
    wrong = [key for key in other if any(parameter.endswith(f".{key}") for parameter in real)]
    if wrong:
        raise UserError(
            f"{name}: {_count(wrong)} of its weights are stored as {other[wrong[0]]} ({_names(wrong)}), not as real "
            "numbers: they are quantized, but config.json has no quantization_config: use the one that was saved with "
            "them, or weights that are not quantized"
        )


def _stored_types(file: Path) -> Iterator[tuple[str, str]]:
    with safe_open(file, "pt") as stored:
        for key in stored.keys():  # noqa: SIM118  # a safetensors file is not a mapping
            yield key, stored.get_slice(key).get_dtype()


def conversion_problem(logged: Iterable[str]) -> str | None:
    """Return what went wrong when stored tensors were converted, according to the logged reports; None if nothing."""
    lines = [line for text in logged if "CONVERSION" in text for line in text.splitlines()]
    return next((line.strip() for line in lines if line.startswith("Error")), None)


def _without_other_senses(name: str, missing: set[str]) -> set[str]:
    """Return the missing tensors that texts go through; warn about the others, which are drawn at random."""
    unseen = {key for key in missing if _OTHER_SENSES.search(key)}
    if unseen:
        logger.warning(
            "%s: its weights lack %s for images or sound (%s), which are drawn at random: texts are not affected",
            name,
            _count(unseen),
            _names(unseen),
        )
    return missing - unseen


def _likely_cause(missing: Collection[str], unexpected: Collection[str]) -> str:
    """Return the likely cause of missing tensors and its fix, from what is stored instead of them."""
    if any(_ADAPTER.search(key) for key in unexpected):
        return "adapters are stored in their place: merge them (merge_and_unload) and save the model again"
    added, lacking = _added_parts(missing, unexpected), _added_parts(unexpected, missing)
    if added and (wrapper := next((_WRAPPERS[part] for part in _WRAPPERS if f".{part}." in f".{added}."), None)):
        return (
            f"their names have {added + '.'!r} in them, as {wrapper} writes: save the model inside the wrapper, or "
            "rename the tensors (safetensors.torch.load_file and save_file)"
        )
    if added or lacking:
        problem = f"have {added + '.'!r} in front" if added else f"lack {lacking + '.'!r} in front"
        return f"the stored names {problem}: rename the tensors (safetensors.torch.load_file and save_file)"
    if not unexpected and all(key.startswith(("lm_head.", "embed_out.", "output.")) for key in missing):
        return (
            "it was saved without its head (AutoModel), or config.json wrongly says that the head is not tied to the "
            "embedding: save it as AutoModelForCausalLM, or set tie_word_embeddings to true"
        )
    if not unexpected:
        return (
            "the folder holds only a part of the model, such as one of several files, or config.json describes a "
            "larger one (num_hidden_layers): fetch all files with model.safetensors.index.json, or fix config.json"
        )
    return (
        f"the weights are of another architecture or class ({_names(unexpected)} are stored instead): use the "
        "config.json that was saved with them"
    )


def _added_parts(names: Collection[str], longer: Collection[str]) -> str:
    """Return the parts, such as `_orig_mod`, that most of the `longer` names have more than one of `names`; or ''."""
    wanted = set(names)
    found = Counter(part for key in longer if (part := _added_part(key, wanted)))
    part, count = found.most_common(1)[0] if found else ("", 0)
    return part if 2 * count >= min(len(wanted), len(longer)) else ""


def _added_part(key: str, wanted: Collection[str]) -> str:
    for part in _WRAPPERS:
        if part in key and ".".join(f".{key}.".split(f".{part}.")).strip(".") in wanted:
            return part
    parts = key.split(".")
    return next((".".join(parts[:cut]) for cut in range(1, len(parts)) if ".".join(parts[cut:]) in wanted), "")


def _mismatch(keys: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    ordered = sorted((key, tuple(stored), tuple(expected)) for key, stored, expected in keys)
    shapes = "; ".join(f"{key} is {stored}, and {expected} in the model" for key, stored, expected in ordered[:_SHOWN])
    rest = f"; and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return (
        f"stored tensors have other shapes than config.json gives the model ({shapes}{rest}): use the config.json that "
        "was saved with the weights"
    )


def _report_unexpected(name: str, model: PreTrainedModel, unexpected: Collection[str]) -> None:
    """Raise UserError about tensors that are stored and not used; of a quantized model, only warn.

    What a quantization stores beside the weights depends on its package, which may not need all of it.
    """
    if any(_ADAPTER.search(key) for key in unexpected):
        cause = "they are adapters that are not merged: merge them (merge_and_unload) and save the model again"
    else:
        cause = (
            "config.json describes a smaller model (num_hidden_layers) or another class, or the weights have a head of "
            "another task: use the config.json that was saved with them, or save the model again without these tensors"
        )
    message = f"{name}: {_count(unexpected)} of its weights are not in the model ({_names(unexpected)}): {cause}"
    if getattr(model, "hf_quantizer", None) is None:
        raise UserError(message)
    logger.warning("%s", message)


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _names(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:_SHOWN]) + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")
