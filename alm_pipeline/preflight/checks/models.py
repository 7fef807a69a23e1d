"""Checks of both models: their files, tokenizers and vocabularies, and what their classes can do."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from alm_pipeline.config import TrainedTokenizer
from alm_pipeline.models.configuration import refuse_other_tables
from alm_pipeline.models.health.damage import check_weights_file
from alm_pipeline.models.health.finite_weights import check_finite_files, not_finite_in
from alm_pipeline.models.loaded_files import local_weight_files
from alm_pipeline.models.output_head import check_output_head
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.preflight.context import Context
from alm_pipeline.preflight.small_model import small_model
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.training.student.save import beyond_range
from alm_pipeline.transfer.fvt import map_vocabulary
from alm_pipeline.transfer.initialization import Initialization, donor_ids

_MOST_WEIGHT_BYTES = 2**31
"""of weights that are read to look for NaN: a second. Larger ones are looked at when they are loaded"""


def teacher_is_readable(context: Context) -> None:
    """The teacher's configuration and tokenizer, and its tokenizer's rows in its embedding."""
    with context.noting("teacher"):
        ByteEncoder(context.teacher_tokenizer, None, _rows(context, context.teacher))


def student_is_readable(context: Context) -> None:
    """The same of the student's model."""
    with context.noting("student.model"):
        ByteEncoder(context.source_tokenizer, None, _rows(context, context.source))


def _rows(context: Context, model: ModelReference) -> int:
    _ = context.teacher_config if model is context.teacher else context.source_config
    return model.vocabulary_rows


def student_can_be_made_of_its_model(context: Context) -> None:
    with context.noting("student.model"):
        context.source.refuse_adapter()


def new_tokenizer(context: Context) -> None:
    """A new tokenizer and the embeddings of its tokens."""
    student = context.config.student
    if context.keeps_tokenizer:
        return
    with context.noting("student.model"):
        refuse_other_tables(context.source_config, context.source.name)
    _ = context.student_tokenizer
    with context.noting("student.initialization"):
        initialization = Initialization.of(student, trust_remote_code=context.source.trust_remote_code)
        initialization.require_source(context.source)
    donor = initialization.donor
    if donor is None or isinstance(student.tokenizer, TrainedTokenizer):
        return
    field = "student.donor" if student.donor else "student.tokenizer"
    with context.noting(field):
        _ = donor.configuration
        target = context.student_tokenizer
        assert target is not None
        mapping = map_vocabulary(context.source_tokenizer, target, _rows(context, context.source))
        donor_ids(donor, mapping, donor.vocabulary_rows)


def weights_are_whole(context: Context) -> None:
    """The files of the weights are there and whole and, where that takes a second at most, hold no NaN."""
    fields = {"teacher": context.teacher}
    if "train" in context.phases:
        fields["student.model"] = context.source
    seen = set[str]()
    for field, model in fields.items():
        if model.name in seen or not context.is_here(model):
            continue
        seen.add(model.name)
        _ = context.teacher_config if field == "teacher" else context.source_config
        with context.noting(field):
            _check_weights(model, context.config.score.dtype if field == "teacher" else "float32")
            if field == "student.model" and context.config.train.save_dtype == "float16":
                _check_range(model)


def _check_weights(model: ModelReference, dtype: str) -> None:
    files = _weight_files(model)
    for file in files:
        check_weights_file(file)
    if _are_small(files):
        check_finite_files(files, model.name, dtype)


def _check_range(model: ModelReference) -> None:
    """Raise UserError if a weight is beyond the range of float16, which the student is to be saved in."""
    files = _weight_files(model)
    if _are_small(files) and (wrong := not_finite_in(files, "float16")):
        raise beyond_range(min(wrong), "float16")


def _weight_files(model: ModelReference) -> list[Path]:
    names = local_weight_files(model.name, model.folder)
    return [model.folder / name for name in names if name.endswith(".safetensors")]


def _are_small(files: Sequence[Path]) -> bool:
    return sum(file.stat().st_size for file in files) <= _MOST_WEIGHT_BYTES


def teacher_can_score(context: Context) -> None:
    """A small model of the teacher's class: its head is the layer that its logits come from, where that scores."""
    if context.config.score.engine != "transformers":
        return
    model = small_model(context.teacher_config, context.teacher.name)
    if model is not None:
        with context.noting("teacher"):
            _check_head(model, context.teacher.name)


def _check_head(model: PreTrainedModel, name: str) -> None:
    model.config.name_or_path = name
    check_output_head(model)


def student_can_be_trained(context: Context) -> None:
    """The same of the student's class."""
    model = small_model(context.source_config, context.source.name)
    if model is not None:
        with context.noting("student.model"):
            _check_head(model, context.source.name)
