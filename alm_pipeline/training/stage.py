"""The stage that makes the student: caches → a Hugging Face model folder, with its metrics and held-out results."""

import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from alm_pipeline.evaluation.held_out import Measured
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.naming.names import student_title
from alm_pipeline.runtime.output_files import write_outputs
from alm_pipeline.runtime.progress import show_line
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.distillation import Distillation
from alm_pipeline.training.loop.checkpoints import RECORD, CheckpointKeeper, checkpoint_names, remove_damaged
from alm_pipeline.training.loop.evaluations import Evaluations
from alm_pipeline.training.loop.trackers import RunLog, hyperparameters
from alm_pipeline.training.loop.train import train_student
from alm_pipeline.training.loop.training_run import TrainingRun
from alm_pipeline.training.parallel.processes import broadcast_from_first, this_process, wait_for_all
from alm_pipeline.training.student.curves import PICTURE, draw_curves, read_curves
from alm_pipeline.training.student.evaluator import HeldOutEvaluator
from alm_pipeline.training.student.mixed_evaluator import MixedEvaluator, mean_measured
from alm_pipeline.training.student.model_card import DistilledStudent, write_card
from alm_pipeline.training.student.save import round_weights, save_source_metrics, save_speed, save_student
from storage.errors import UserError
from storage.folders import CHECKPOINTS, FolderManifest, StoredFolder
from storage.lease import Lease

RUNS = "runs"
"""what differs between two equal runs: the speed of the steps, and TensorBoard's files"""


def train(distillation: Distillation, student: StoredFolder) -> FolderManifest:
    """Train the student on the caches, evaluate it before and after, and save it in its folder.

    If another run is training it, wait for that run's result. Of several processes that train together, all call this:
    the first one does everything but its share of the training alone.
    """
    _check_same_on_all_machines(student)
    if not this_process().is_first:
        return _help(distillation, student)
    if not student.is_to_be_replaced and (manifest := student.manifest()) and not student.has(CHECKPOINTS):
        broadcast_from_first(None)
        return broadcast_from_first(manifest)
    with student.held() as lease:
        # the student, or the one that replaces it when it is finished: `--again` asked for it, or a repair
        target = broadcast_from_first(student.to_make(lease))
        if target:
            _train_and_save(distillation, target, lease)
            student.settle(lease)
        student.remove(CHECKPOINTS)  # a kill may have come between the manifest and this
        manifest = student.manifest()
    assert manifest
    return broadcast_from_first(manifest)


def _check_same_on_all_machines(student: StoredFolder) -> None:
    """Raise UserError in a process that would make another student than the first: its machine has other files."""
    first = broadcast_from_first(student.name)
    if first != student.name:
        raise UserError(
            f"{platform.node()}: has other files of a model or tokenizer, or of this program, than the first machine: "
            f"it would make {student.name} instead of {first}: give all machines the same files"
        )


def _help(distillation: Distillation, student: StoredFolder) -> FolderManifest:
    """Take part in the first process's training, if there is any; return the manifest that it wrote or found."""
    target: StoredFolder | None = broadcast_from_first(None)
    if target:
        # this machine's path of it may be another one than the first process's
        student = replace(student, is_replacement=target.is_replacement)
        model = distillation.initial_student().model
        _share_checkpoints(student)
        vocabulary = HeadVocabulary.of(model, distillation.tokenizer)
        evaluations = Evaluations(None, distillation.config.evaluation)
        _train(distillation, student, model, vocabulary, _stream(distillation), evaluations)
    manifest: FolderManifest | None = broadcast_from_first(None)
    assert manifest
    return manifest


def _share_checkpoints(student: StoredFolder) -> None:
    """Give all machines the checkpoints that the first process resumes from."""
    process = this_process()
    if process.is_first:
        remove_damaged(student.path / CHECKPOINTS)  # the store may have them whole
        student.restore(CHECKPOINTS)
        if process.is_on_many_machines:
            student.mirror(CHECKPOINTS, checkpoint_names(student.path / CHECKPOINTS), RECORD)
    wait_for_all()
    if process.leads_another_machine:
        student.restore_exactly(CHECKPOINTS)  # the folder may hold an earlier run's
    wait_for_all()


def _train_and_save(distillation: Distillation, student: StoredFolder, lease: Lease) -> None:
    config = distillation.config
    run_log = RunLog(config.log, student.name, student.path / RUNS, hyperparameters(config), config.name)
    run_log.check()
    initial = distillation.initial_student()
    model = initial.model
    if initial.level:
        show_line(str(initial.level))
    vocabulary = HeadVocabulary.of(model, distillation.tokenizer)
    evaluations = Evaluations(_evaluator(distillation, vocabulary), config.evaluation)
    _share_checkpoints(student)
    stream = _stream(distillation)
    with _keeper(student, lease, distillation, evaluations) as keeper:
        log = _train(distillation, student, model, vocabulary, stream, evaluations, keeper.keep, run_log)
        after = _save(distillation, student, model, log, vocabulary)
        evaluations.write(student.path)
    results = {
        **initial.results(),
        **_held_out_results(distillation, evaluations, after),
        "chosen_step": evaluations.chosen_step(int(log[-1]["step"]) if log else 0),
    }
    if config.is_mixture:
        results["sources"] = _source_results(distillation, evaluations, after, stream)
    _describe(DistilledStudent(config, distillation.datasets, student, results))
    lease.check()
    student.upload(RUNS)
    distillation.check_unchanged()
    content = ModelReference(str(student.path), trust_remote_code=True).identity
    student.finish(results, lease, content=content)
    student.remove(CHECKPOINTS)


def _train(
    distillation: Distillation,
    student: StoredFolder,
    model: PreTrainedModel,
    vocabulary: HeadVocabulary,
    stream: BatchStream,
    evaluations: Evaluations,
    on_checkpoint: Callable[[], None] = lambda: None,
    run_log: RunLog | None = None,
) -> list[dict[str, float]]:
    config = distillation.config
    log = train_student(
        TrainingRun(
            model,
            stream,
            vocabulary,
            config.objective,
            config.train,
            student.path / CHECKPOINTS,
            distillation.live_teacher(),
            evaluations,
            run_log,
            on_checkpoint,
            stream.names if stream.is_mixture else (),
        )
    )
    distillation.check_unchanged()
    return log


def _stream(distillation: Distillation) -> BatchStream:
    config, sources = distillation.config, distillation.training_sources
    if config.is_mixture:
        return BatchStream(sources, config.objective, config.train)
    (only,) = sources
    return BatchStream(only.datasets, config.objective, config.train, ends=only.ends, prefixes=only.prefixes)


def _evaluator(distillation: Distillation, vocabulary: HeadVocabulary) -> HeldOutEvaluator | MixedEvaluator:
    """Return what evaluates the student; the samples of a mixture are divided between its sources."""
    config, count, evaluators = distillation.config, len(distillation.parts), {}
    settings = config.evaluation.model_copy(update={"samples": -(-config.evaluation.samples // count)})
    for part, source in zip(distillation.parts, distillation.training_sources, strict=True):
        own = config.model_copy(update={"objective": part.objective, "evaluation": settings})
        evaluators[part.name] = HeldOutEvaluator(
            distillation.held_out_parts[part.name],
            own,
            vocabulary,
            distillation.tokenizer,
            source.ends,
            source.prefixes,
            part.caches["examples"],
        )
    if config.is_mixture:
        return MixedEvaluator(evaluators, distillation.weights)
    (only,) = evaluators.values()
    return only


def _save(
    distillation: Distillation,
    student: StoredFolder,
    model: PreTrainedModel,
    log: list[dict[str, float]],
    vocabulary: HeadVocabulary,
) -> dict[str, Measured]:
    """Write the trained student's files; return its measures by source, as it is saved."""
    setting = distillation.config.train.save_dtype
    dtype = distillation.source.weights_dtype if setting == "source" else setting
    round_weights(model, dtype)
    scorer, is_mixture = Scorer(model, vocabulary), distillation.config.is_mixture
    measured = {
        name: held_out.measure_student(scorer, f"evaluate after {name}" if is_mixture else "evaluate after")
        for name, held_out in distillation.held_out_parts.items()
    }
    save_student(model, distillation.tokenizer.fast, log, student.path, dtype)
    if is_mixture:
        save_source_metrics(log, [part.name for part in distillation.parts], student.path)
    save_speed(log, student.path / RUNS)
    return measured


def _held_out_results(
    distillation: Distillation, evaluations: Evaluations, after: Mapping[str, Measured]
) -> dict[str, Any]:
    """Return the results on held-out examples; of a mixture, means over its sources by their weights."""
    held_out, weights = distillation.held_out_parts, distillation.weights
    if distillation.config.is_mixture:
        teacher = mean_measured({name: each.teacher for name, each in held_out.items()}, weights)
        student = mean_measured(after, weights)
    else:
        teacher, student = distillation.held_out.teacher, after[distillation.parts[0].name]
    return {
        "held_out_bits_per_byte": _bits(teacher, evaluations.before, student),
        "held_out_word_kl": _word_kl(evaluations.before, student),
        "held_out_standard_errors": {
            "teacher": teacher.standard_error,
            "student_after": student.standard_error,
            "student_word_kl": student.distance and student.distance.standard_error,
        },
        "held_out_documents": sum(each.document_count for each in held_out.values()),
    }


def _source_results(
    distillation: Distillation, evaluations: Evaluations, after: Mapping[str, Measured], stream: BatchStream
) -> dict[str, Any]:
    """Return what a mixture's manifest says of each source: its share, what was read of it, and its results.

    `epochs` counts the times that it was begun: one that ends is read again, in another order.
    """
    read = {source["name"]: source for source in stream.state_dict()["sources"]}
    return {
        part.name: {
            "share": distillation.weights[part.name],
            "teacher": part.teacher.label,
            "examples": read[part.name]["rows"],
            "epochs": read[part.name]["epoch"] + 1,
            "bits_per_byte": _bits(
                distillation.held_out_parts[part.name].teacher,
                evaluations.before_by_source[part.name],
                after[part.name],
            ),
            "word_kl": _word_kl(evaluations.before_by_source[part.name], after[part.name]),
            "held_out_documents": distillation.held_out_parts[part.name].document_count,
        }
        for part in distillation.parts
    }


def _bits(teacher: Measured, before: Mapping[str, float], after: Measured) -> dict[str, float]:
    return {
        "teacher": teacher.bits_per_byte,
        "student_before": before["bits_per_byte"],
        "student_after": after.bits_per_byte,
    }


def _word_kl(before: Mapping[str, float], after: Measured) -> dict[str, float]:
    """Return the KL per word of the student before and after training; {} where it has none."""
    if after.distance is None:
        return {}
    return {"student_before": before["word_kl"], "student_after": after.distance.kl}


def _describe(distilled: DistilledStudent) -> None:
    """Draw the curves and write the model card, from the files in the student's folder."""
    results: Any = distilled.results["held_out_bits_per_byte"]
    run = read_curves(str(distilled.student.path), results)
    # speeds differ between two equal runs, and the student's files do not
    shown = [replace(run, name=student_title(distilled.config), speed={})]
    write_outputs(distilled.student.path, {}, {PICTURE: partial(draw_curves, shown)})
    write_card(distilled)


def _keeper(
    student: StoredFolder, lease: Lease, distillation: Distillation, evaluations: Evaluations
) -> CheckpointKeeper:
    config = distillation.config

    def upload(names: Collection[str]) -> None:
        lease.check()
        student.mirror(CHECKPOINTS, names, RECORD)

    def best_step() -> int | None:
        return evaluations.best_step if config.evaluation.student == "best" else None

    return CheckpointKeeper(student.path / CHECKPOINTS, config.train.keep_checkpoints, best_step, upload)
