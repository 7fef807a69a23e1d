"""Writes the results of training: a Hugging Face model folder, and the metrics of every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import Term
from alm_pipeline.models.health.finite_weights import is_finite
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.runtime.progress import logger
from storage.errors import UserError, user_error

_FIX = "correct its config.json and generation_config.json, or save the model again (save_pretrained)"

METRICS = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        *((term, pa.float64()) for term in get_args(Term)),
        ("kl", pa.float64()),
        *((f"{term}_weight", pa.float64()) for term in get_args(Term)),
        ("chunks", pa.int64()),
        ("tokens", pa.int64()),
        ("aligned_chunk_tokens", pa.float64()),
        ("chunk_tokens", pa.float64()),
        ("used_share", pa.float64()),
        ("teacher_chunk_probability", pa.float64()),
        ("student_chunk_probability", pa.float64()),
        ("boundary_probability", pa.float64()),
        ("grad_norm", pa.float64()),
        ("learning_rate", pa.float64()),
    ]
)
"""The columns of `metrics.parquet`, one row per step.

`loss` is the weighted sum of the terms; a term that is not in the objective is null. `kl` is the mean divergence of
chunks, zero if the student gives every chunk the teacher's likelihood. `chunks` and `tokens` are counts.
`aligned_chunk_tokens` and `chunk_tokens` are student tokens per chunk, before and after merging. `used_share` is the
share of aligned chunks that are in a chunk that counts. The probabilities are means over chunks; the last one is the
student's probability of a boundary token after the chunk.
"""

METRICS_BY_SOURCE = pa.schema(
    [
        ("step", pa.int64()),
        ("source", pa.string()),
        ("examples", pa.int64()),
        ("tokens", pa.int64()),
        ("chunks", pa.int64()),
        ("kl", pa.float64()),
    ]
)
"""The columns of `metrics_by_source.parquet`, one row per step and source of a mixture.

`examples`, `tokens` and `chunks` are counts; `kl` is the mean divergence of the source's chunks (null: it has none).
"""

SPEED = pa.schema(
    [
        ("step", pa.int64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("tokens_per_second", pa.float64()),
        ("memory_bytes", pa.int64()),
    ]
)
"""The columns of `runs/speed.parquet`, one row per step: student tokens on all devices, and this process's memory."""


def round_weights(model: PreTrainedModel, dtype: str) -> None:
    """Round the weights to values of `dtype`, in place and keeping their type, so the stored values are evaluated.

    Raises UserError if a weight is NaN or infinite, or exceeds the range of `dtype`.
    """
    for name, weight in model.state_dict().items():  # includes the buffers that are stored
        if not weight.is_floating_point():
            continue
        if not is_finite(weight):
            raise UserError(
                f"{name}: the trained student has weights that are NaN or infinite: lower train.learning_rate"
            )
        weight.copy_(weight.to(getattr(torch, dtype)))
        if not is_finite(weight):
            raise beyond_range(name, dtype)


def beyond_range(name: str, dtype: str) -> UserError:
    """Return the error about a weight that `dtype` can't hold."""
    larger = "bfloat16" if dtype == "float16" else "float32"
    return UserError(f"train.save_dtype: {name} has weights beyond the range of {dtype}: use {larger}")


def save_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    log: list[dict[str, float]],
    folder: Path,
    dtype: str = "float32",
) -> None:
    """Write a model folder that plain transformers loads, and `metrics.parquet` with one row per step.

    The model's weights have `dtype` afterward.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _complete_generation(model, tokenizer)
    with quiet_transformers():
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    pq.write_table(pa.Table.from_pylist(log, METRICS), folder / "metrics.parquet")


def save_source_metrics(log: list[dict[str, float]], sources: Sequence[str], folder: Path) -> None:
    """Write `metrics_by_source.parquet`, one row per step and source of a mixture."""
    names = METRICS_BY_SOURCE.names[2:]
    rows = [
        {"step": entry["step"], "source": source, **{name: entry.get(f"{source}/{name}") for name in names}}
        for entry in log
        for source in sources
    ]
    pq.write_table(pa.Table.from_pylist(rows, METRICS_BY_SOURCE), folder / "metrics_by_source.parquet")


def save_description(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write what `save_student` writes of the student besides its weights and metrics: the model may have no values.

    Raises UserError if something of it can't be written.
    """
    _complete_generation(model, tokenizer)
    with user_error(f"{model.name_or_path or model.config.model_type}: can't be saved", _FIX), quiet_transformers():
        model.config.save_pretrained(folder)
        if model.generation_config is not None and model.can_generate():
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def save_speed(log: list[dict[str, float]], folder: Path) -> None:
    """Write `speed.parquet`, one row per step. Speeds differ between runs, so they are not part of the student."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(log, SPEED), folder / "speed.parquet")


def _complete_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set the tokenizer's begin, end and padding ids where the source's generation configuration has none.

    And `do_sample`, if the settings are those of sampling: older models leave it out, and can't be saved so.
    """
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if model.generation_config and getattr(model.generation_config, role) is None:
            setattr(model.generation_config, role, getattr(tokenizer, role))
    generation = model.generation_config
    if generation is None or generation.do_sample or _can_be_saved(generation):
        return
    before, generation.do_sample = generation.do_sample, True
    if not _can_be_saved(generation):
        generation.do_sample = before  # saving it reports what is wrong
        return
    logger.warning(
        "generation_config.json has settings of sampling without do_sample: the student is saved with do_sample: true"
    )


def _can_be_saved(generation: GenerationConfig) -> bool:
    try:
        with quiet_transformers():
            generation.validate(strict=True)
    except ValueError:
        return False
    return True
