"""What training leaves: a Hugging Face model folder, and the metrics of every step."""

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import Term
from alm_pipeline.models.files import quiet_transformers
from storage.errors import UserError

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
"""The columns of `metrics.parquet`, a row a step.

`loss` is the terms with their weights (null: not asked for), `kl` the mean divergence of chunks, zero where the student
gives each the teacher's likelihood. `chunks` and `tokens` count; `aligned_chunk_tokens` and `chunk_tokens` are student
tokens a chunk before and after merging; `used_share` is of the aligned chunks those in a chunk that counts; the
probabilities are means over chunks, the last of a boundary token after the chunk by the student.
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
"""The columns of `runs/speed.parquet`, a row a step: student tokens of all devices, and this process's memory."""


def round_weights(model: PreTrainedModel, dtype: str) -> None:
    """Round the weights to what `dtype` holds, in place and in their own type: what is evaluated is what is stored.

    Raises UserError where it does not hold them.
    """
    for name, weight in model.state_dict().items():  # buffers that are stored among them
        if not weight.is_floating_point():
            continue
        weight.copy_(weight.to(getattr(torch, dtype)))
        if dtype == "float16" and not weight.isfinite().all():
            raise UserError(f"train.save_dtype: {name} has weights beyond float16: bfloat16 holds them")


def save_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    log: list[dict[str, float]],
    folder: Path,
    dtype: str = "float32",
) -> None:
    """A model folder that plain transformers load, and `metrics.parquet` with a row a step.

    The model's weights have `dtype` afterwards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _complete_generation(model, tokenizer)
    with quiet_transformers():
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    pq.write_table(pa.Table.from_pylist(log, METRICS), folder / "metrics.parquet")


def save_speed(log: list[dict[str, float]], folder: Path) -> None:
    """`speed.parquet`: a row a step, how long it took; not the same twice, and so no part of the student."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(log, SPEED), folder / "speed.parquet")


def _complete_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokenizer's begin, end and padding ids, where the source's configuration of generation told none."""
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if model.generation_config and getattr(model.generation_config, role) is None:
            setattr(model.generation_config, role, getattr(tokenizer, role))
