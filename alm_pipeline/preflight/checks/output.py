"""Checks of where a run writes: the store takes it, there is room for it, and the Hub takes the student."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants, get_token
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]  # lazily exported

from alm_pipeline.config.scoring import DTYPE_BYTES
from alm_pipeline.preflight.context import Context, Unavailable
from storage.urls import is_local, open_filesystem

_HUB_SECONDS = 3.0
_BYTES_PER_TOKEN = 4.0
"""of text, a rough mean; measured on a sample it is the plan's"""
_CACHE_BYTES_PER_TOKEN = 10.0
"""of both tokenizations, the alignments and the scores, per teacher token"""
_BYTES_PER_TRAINED_PARAMETER = 16
"""float32: the weight, its gradient and AdamW's two moments"""
_BYTES_PER_CHECKPOINTED_PARAMETER = 12
_CLEARLY = 3
"""how many times the room has to be exceeded by a rough estimate before a run is refused"""


def store_is_writable(context: Context) -> None:
    """A tiny object can be written under the root, and removed."""
    _ = context.store


@dataclass(frozen=True)
class Sizes:
    """Rough sizes of what a run needs, in bytes; what is not known counts as 0."""

    caches: float
    student: float
    checkpoints: float

    @classmethod
    def of(cls, context: Context) -> "Sizes":
        train = context.config.train
        if "train" not in context.here:
            return cls(_cache_bytes(context), 0.0, 0.0)
        _ = context.source_config
        parameters = _parameters(context)
        saved = context.source.weights_dtype if train.save_dtype == "source" else train.save_dtype
        kept = (train.keep_checkpoints + 1) * _BYTES_PER_CHECKPOINTED_PARAMETER if train.steps else 0
        # of adapters only the adapters and the embeddings are kept with moments
        checkpoints = 0.0 if train.lora else parameters * kept
        return cls(_cache_bytes(context), parameters * DTYPE_BYTES[saved], checkpoints)

    @property
    def total(self) -> float:
        return self.caches + self.student + self.checkpoints


def _parameters(context: Context) -> int:
    try:
        return sum(value.numel() for value in context.student_outline.parameters())
    except Unavailable:
        return 0


def _cache_bytes(context: Context) -> float:
    try:
        sample = context.sample
    except Unavailable:
        return 0.0
    corpus, text = context.config.texts, float(sum(example.text_bytes for example in sample.examples))
    if not sample.is_whole and sample.examples:
        mean = text / len(sample.examples)
        # compressed files have more text than bytes, and others less
        text = sample.bytes_of_files * corpus.sample
        text = text if corpus.max_examples is None else min(text, corpus.max_examples * mean)
    return text / 2 + text / _BYTES_PER_TOKEN * _CACHE_BYTES_PER_TOKEN


def disk(context: Context) -> None:
    """The disk of a local store has room for the caches, the checkpoints and the student."""
    fs, path = open_filesystem(context.store)
    if not is_local(fs):
        return
    place = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    needed, free = Sizes.of(context).total, shutil.disk_usage(place).free
    if needed <= free:
        return
    context.add(
        "storage",
        f"has {_gigabytes(free)} free, and the run needs about {_gigabytes(needed)} for caches, checkpoints and the "
        "student",
        "free some space, or choose another storage",
        severity="error" if needed > _CLEARLY * free else "warning",
        value=context.store,
    )


def memory(context: Context) -> None:
    """The student fits into the memory that it is trained in."""
    train, parameters = context.config.train, _parameters(context)
    if not train.steps or train.lora:
        return
    gpus = torch.cuda.device_count()
    room = torch.cuda.get_device_properties(0).total_memory if gpus else psutil.virtual_memory().total
    processes = max(1, train.processes or gpus)
    split = processes if train.sharding == "fsdp" or not gpus else 1
    needed = parameters * (_BYTES_PER_TRAINED_PARAMETER + (4 if train.ema else 0)) / split
    if not gpus:
        needed *= 1 if train.sharding == "fsdp" else processes
    if context.config.objective.is_live:
        needed += _teacher_parameters(context) * DTYPE_BYTES[context.config.score.dtype]
    if needed > room:
        where = "the GPU" if gpus else "this machine"
        context.add(
            "student.model",
            f"training {parameters / 1e6:,.0f} million parameters takes about {_gigabytes(needed)} before activations, "
            f"and {where} has {_gigabytes(room)}",
            "train adapters (train.lora), split it between processes (train.sharding), or use a smaller model",
            severity="warning",
        )


def _teacher_parameters(context: Context) -> int:
    try:
        return sum(value.numel() for value in context.teacher_outline.parameters())
    except Unavailable:
        return 0


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def hub(context: Context) -> None:
    """The student can be pushed: there is a token, and the Hub accepts it, if it answers within seconds."""
    publish = context.config.publish
    if publish is None:
        return
    if constants.HF_HUB_OFFLINE:
        context.add("publish.repo", "HF_HUB_OFFLINE is set, so nothing can be pushed", "unset it where the run works")
        return
    token = get_token()
    is_own_server = constants.ENDPOINT != constants._HF_DEFAULT_ENDPOINT
    if token is None and not is_own_server:
        context.add(
            "publish.repo",
            "there is no token for the Hub here",
            "set HF_TOKEN to a token with write access, or use `hf auth login`",
        )
    elif token is not None and _is_refused(token):
        context.add(
            "publish.repo",
            "the Hub does not accept the token here",
            "set HF_TOKEN to a token with write access, or use `hf auth login`",
        )


def _is_refused(token: str) -> bool:
    headers = build_hf_headers(token=token)
    try:
        answer = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=headers, timeout=_HUB_SECONDS)
    except Exception:  # a server that is away now may be there when the student is finished
        return False
    return bool(answer.status_code == 401)
