"""Checks of the settings of scoring and training, alone and against this machine."""

import netrc
import os
import shutil
from importlib.util import find_spec
from urllib.parse import urlsplit

import torch

from alm_pipeline.models.loading import all_devices, device_named
from alm_pipeline.objective.prefix_table import check_white_space
from alm_pipeline.preflight.context import Context
from alm_pipeline.scoring.windows import WindowPlan
from alm_pipeline.training.distillation import require_top
from alm_pipeline.training.loop.installed import check_tracker
from alm_pipeline.training.parallel.processes import check_equal_shares, this_process
from storage.errors import UserError


def windows(context: Context) -> None:
    """The teacher's windows have room for scored tokens."""
    _ = context.teacher_config
    score = context.config.score
    with context.noting("score.context"):
        WindowPlan.of(context.teacher.context_length, score.window, score.context)


def boundaries(context: Context) -> None:
    """Debiasing multiplies by the probability of a boundary token, which the teacher's vocabulary must have."""
    if context.config.objective.debias != "none" and not len(context.teacher_tokenizer.boundary_ids):
        context.add(
            "objective.debias",
            "the teacher's vocabulary has no boundary token (no special one, and none that begins with white space), "
            "so the likelihood of every chunk would be 0",
            "set it to none",
        )


def top_k(context: Context) -> None:
    """The likeliest tokens are among those that there are."""
    _ = context.teacher_config
    rows, count = context.teacher.vocabulary_rows, context.config.score.top_k
    if count > rows:
        context.add("score.top_k", f"the teacher's vocabulary has only {rows} tokens", f"use at most {rows}")


def likeliest_tokens(context: Context) -> None:
    """Terms that compare next tokens find the teacher's likeliest ones among its scores, and their bytes."""
    if not context.config.objective.needs_top:
        return
    with context.noting("score.top_k"):
        require_top(context.config)
    with context.noting("objective.terms"):
        check_white_space(context.teacher_tokenizer.view, "teacher")
        if context.student_tokenizer:
            check_white_space(context.student_tokenizer.view, "student")


def devices(context: Context) -> None:
    """The devices of the teacher exist here."""
    for device in context.config.score.devices or ():
        try:
            device_named(device)
        except UserError as error:
            context.add("score.devices", str(error), f"use {', '.join(all_devices())}", value=device)


def shares_of_processes(context: Context) -> None:
    """The processes share the batches of a step equally."""
    train = context.config.train
    processes = this_process().count if this_process().count > 1 else train.processes
    if processes is not None and train.steps:
        with context.noting("train.processes"):
            check_equal_shares(train, processes)


def gpus_of_processes(context: Context) -> None:
    """Each training process has a GPU, where there are any, and what is split is split between several."""
    train, gpus = context.config.train, torch.cuda.device_count()
    if train.processes and this_process().count == 1 and 0 < gpus < train.processes:
        context.add(
            "train.processes",
            f"{train.processes} processes need a GPU each, and this machine has {gpus}",
            f"use at most {gpus}, or leave it out to use all",
        )
    processes = max(this_process().count, train.processes or gpus)
    if train.sharding == "fsdp" and processes <= 1:
        context.add(
            "train.sharding",
            "a single process trains here, and fsdp splits the student between several",
            "set train.processes, or leave it out",
            severity="warning",
        )


def compiler(context: Context) -> None:
    """torch.compile finds what it compiles with."""
    if not context.config.train.compile or not context.config.train.steps:
        return
    if torch.cuda.is_available():
        if find_spec("triton") is None:
            context.add("train.compile", "torch.compile needs triton, which is not installed", "pip install triton")
    elif not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")))):
        context.add(
            "train.compile",
            "torch.compile needs a C++ compiler, and there is none on this machine",
            "install g++, or set it to false",
        )


def bfloat16(context: Context) -> None:
    """The GPU computes in bfloat16."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0):
        return
    name = torch.cuda.get_device_name()
    used = {"score": "score.dtype", "train": "train.dtype"}
    dtypes = {"score.dtype": context.config.score.dtype, "train.dtype": context.config.train.dtype}
    for phase, field in used.items():
        if phase in context.here and dtypes[field] == "bfloat16":
            context.add(field, f"{name} computes slowly in bfloat16", "use float16 or float32", severity="warning")


def trackers(context: Context) -> None:
    """The packages of the trackers are installed, and wandb has a key."""
    for tracker in context.config.log.report_to:
        with context.noting("log.report_to"):
            check_tracker(tracker)
    if "wandb" in context.config.log.report_to and find_spec("wandb") and not _has_wandb_key():
        context.add(
            "log.report_to",
            "wandb finds no API key here, and would stop the training where nobody can be asked for one",
            "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline",
            severity="warning",
        )


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
