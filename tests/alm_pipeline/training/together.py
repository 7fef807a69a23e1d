"""A training that one process or several together run in the same way, for tests that compare the results."""

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
from alm_pipeline.training.loop.training_run import TrainingRun
from alm_pipeline.training.model.live_teacher import LiveTeacher
from alm_pipeline.training.parallel.processes import joined_processes, this_process

MIDDLE = "checkpoint-2"


def train(content: dict[str, Any], root: str, folder: Path) -> None:
    """Train four steps, from the checkpoint in `folder` if it has one. Leaves log.json, a model and `MIDDLE` there."""
    config = AlmConfig.model_validate(content)
    pipeline = Pipeline(config, root)
    # in evaluation mode: `train_student` itself switches to training mode
    model = AutoModelForCausalLM.from_pretrained(config.student.model)
    vocabulary = HeadVocabulary.of(model, LoadedTokenizer(config.student.model))
    is_live = config.objective.is_live
    teacher = LiveTeacher(load_model(config.teacher, "float32"), vocabulary.rows) if is_live else None
    log = train_student(
        TrainingRun(
            model,
            BatchStream(pipeline.caches, config.objective, config.train),
            vocabulary,
            config.objective,
            config.train,
            folder / "checkpoints",
            teacher,
            on_checkpoint=partial(_keep_middle, folder),
        )
    )
    if this_process().is_first:
        (folder / "log.json").write_text(json.dumps(log))
        model.save_pretrained(folder / "model")


def _keep_middle(folder: Path) -> None:
    checkpoint, copy = folder / "checkpoints" / MIDDLE, folder / MIDDLE
    if checkpoint.exists() and not copy.exists():
        shutil.copytree(checkpoint, copy)


def main(orders: str) -> None:
    """Run all cases in order; each is [configuration, root, folder, checkpoint to resume from or null]."""
    torch.set_num_threads(1)
    with joined_processes() as process:
        for content, root, folder, checkpoint in json.loads(Path(orders).read_text()):
            if checkpoint and process.is_first:
                shutil.copytree(checkpoint, Path(folder, "checkpoints", MIDDLE))
            train(content, root, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
