"""What one training consists of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.loop.evaluations import Evaluations
from alm_pipeline.training.loop.trackers import RunLog
from alm_pipeline.training.model.live_teacher import LiveTeacher


@dataclass(frozen=True)
class TrainingRun:
    """A student's training. Several processes that train together each have one, with equal settings."""

    model: PreTrainedModel
    """the student, which is trained in place; in the end only the first process's is complete"""
    stream: BatchStream
    """all batches of the training; a checkpoint holds the position in it"""
    vocabulary: HeadVocabulary
    """the student's"""
    objective: ObjectiveConfig
    config: TrainConfig
    checkpoints: Path
    """the folder of the checkpoints"""
    teacher: LiveTeacher | None = None
    """needed by some terms of the objective"""
    evaluations: Evaluations | None = None
    """None: the student is not evaluated"""
    run_log: RunLog | None = None
    """the trackers that the metrics are reported to, in the first process"""
    on_checkpoint: Callable[[], None] = lambda: None
    """called in the first process after each checkpoint"""
    sources: tuple[str, ...] = ()
    """the names of a mixture's sources, in the order of its stream; their metrics are logged one by one"""
