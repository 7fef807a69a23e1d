"""Trainings that one process, or several together, do in the same way; the tests compare what comes out."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alm_pipeline.config import AlmConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.loop.train import train_student
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.parallel.processes import joined, this_process

MIDDLE = "checkpoint-2"


def train(content: dict[str, Any], root: str, folder: Path) -> None:
    """Four steps, from the checkpoint in `folder` on if there is one: leaves log.json, a model and `MIDDLE` there."""
    config = AlmConfig.model_validate(content)
    pipeline = Pipeline(config, root)
    # as loaded: train() would do the same in all processes
    model = AutoModelForCausalLM.from_pretrained(config.student.model)
    teacher = None
    if config.objective.is_live:
        teacher = LiveTeacher(
            load_model(config.teacher, "float32"), HeadVocabulary.of(model, LoadedTokenizer(config.student.model)).rows
        )
    log = train_student(
        model,
        partial(BatchStream, pipeline.caches, config.objective, config.train),
        HeadVocabulary.of(model, LoadedTokenizer(config.student.model)),
        config.objective,
        config.train,
        folder / "checkpoints",
        partial(_keep_middle, folder),
        teacher,
    )
    if this_process().is_first:
        (folder / "log.json").write_text(json.dumps(log))
        model.save_pretrained(folder / "model")


def _keep_middle(folder: Path) -> None:
    made, kept = folder / "checkpoints" / MIDDLE, folder / MIDDLE
    if made.exists() and not kept.exists():
        shutil.copytree(made, kept)


def main(orders: str) -> None:
    """All cases, one after the other; each is [configuration, root, folder, a checkpoint to begin with or null]."""
    torch.set_num_threads(1)
    with joined() as process:
        for content, root, folder, checkpoint in json.loads(Path(orders).read_text()):
            if checkpoint and process.is_first:
                shutil.copytree(checkpoint, Path(folder, "checkpoints", MIDDLE))
            train(content, root, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
