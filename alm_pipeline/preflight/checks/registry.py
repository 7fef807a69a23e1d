"""Every check in one table, and the preflight that makes them: all of its findings at once, within seconds.

A new check is a function of a `Context` that adds findings to it, and an entry in `CHECKS`. It brings forward an error
that would come later otherwise, so it refuses nothing that a run could do, and says it in the later error's words.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from alm_pipeline.preflight.checks import (
    conversations,
    corpus,
    engines,
    models,
    output,
    scores,
    settings,
    student,
    templates,
    unread,
)
from alm_pipeline.preflight.context import Context, RunInputs, Unavailable
from alm_pipeline.preflight.findings import Finding
from alm_pipeline.preflight.phases import ALL_PHASES, Phase
from storage.errors import UserError, cause, is_temporary

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """A check, and for which phases of a run it is made."""

    run: Callable[[Context], None]
    field: str
    """what a finding is about whose cause does not say so"""
    phases: tuple[Phase, ...] = ALL_PHASES
    """the phases whose errors it brings forward"""
    of_machine: bool = False
    """it says something only on a machine that does one of the phases itself"""

    def applies(self, context: Context) -> bool:
        phases = context.here if self.of_machine else context.phases
        return any(phase in phases for phase in self.phases)


_PREPARE: tuple[Phase, ...] = ("prepare",)
_SCORE: tuple[Phase, ...] = ("score",)
_TRAIN: tuple[Phase, ...] = ("train",)

CHECKS: tuple[Check, ...] = (
    Check(models.teacher_is_readable, "teacher"),
    Check(models.student_is_readable, "student.model", ("prepare", "train")),
    Check(models.student_can_be_made_of_its_model, "student.model", ("prepare", "train")),
    Check(models.new_tokenizer, "student.tokenizer", ("prepare", "train")),
    Check(corpus.student_context, "student.model", _PREPARE),
    Check(corpus.corpus_is_readable, "corpus.source", _PREPARE),
    Check(corpus.corpus_has_examples, "corpus", _PREPARE),
    Check(corpus.what_is_left_out, "corpus.deduplicate", _PREPARE),
    Check(corpus.texts_have_predictions, "corpus.text", _PREPARE),
    Check(corpus.templates_show_conversations, "corpus.messages", _PREPARE),
    Check(templates.arguments_are_read, "student.template", _PREPARE),
    Check(templates.turns_are_tokens, "student.template", _PREPARE),
    Check(templates.rows_have_what_is_named, "corpus", _PREPARE),
    Check(conversations.sides_show_the_same, "corpus.one_sided", _PREPARE),
    Check(conversations.something_is_learned, "objective.learn", _TRAIN),
    Check(models.weights_are_whole, "teacher", _PREPARE),
    Check(models.teacher_can_score, "teacher", _SCORE),
    Check(settings.windows, "score.context", _SCORE),
    Check(settings.top_k, "score.top_k", _SCORE),
    Check(settings.likeliest_tokens, "objective.terms", _TRAIN),
    Check(settings.devices, "score.devices", _SCORE, of_machine=True),
    Check(engines.engine, "score.engine", _SCORE, of_machine=True),
    Check(settings.bfloat16, "score.dtype", ("score", "train"), of_machine=True),
    Check(models.student_can_be_trained, "student.model", _TRAIN),
    Check(corpus.held_out, "corpus.held_out", _TRAIN),
    Check(settings.boundaries, "objective.debias", _TRAIN),
    Check(scores.gamma_without_scores, "objective.gamma", _TRAIN),
    Check(scores.gamma_on_scores, "objective.gamma", _TRAIN),
    Check(student.byte_level_model, "student.ngram_embeddings", _TRAIN),
    Check(student.packed_rows, "train.row_tokens", _TRAIN),
    Check(student.trained_parameters, "train", _TRAIN),
    Check(student.linear_heads, "objective.terms", _TRAIN),
    Check(student.student_can_be_saved, "student.model", _TRAIN),
    Check(settings.shares_of_processes, "train.processes", _TRAIN),
    Check(student.execution, "train.attention", _TRAIN, of_machine=True),
    Check(settings.gpus_of_processes, "train.processes", _TRAIN, of_machine=True),
    Check(settings.compiler, "train.compile", _TRAIN, of_machine=True),
    Check(settings.trackers, "log.report_to", _TRAIN, of_machine=True),
    Check(output.hub, "publish.repo", _TRAIN, of_machine=True),
    Check(output.memory, "student.model", _TRAIN, of_machine=True),
    Check(unread.unread_settings, "objective", ("prepare", "train")),
    Check(output.store_is_writable, "storage"),
    Check(output.disk, "storage", ("prepare", "train")),
)
"""In the order of a run; those that open something come before those that need it."""


def preflight(
    inputs: RunInputs, phases: Collection[Phase] = ALL_PHASES, here: Collection[Phase] | None = None
) -> list[Finding]:
    """Return what would stop a run, or make it useless, errors first.

    `phases` is what the run does, and `here` what of it this machine does (None: all of it). Takes seconds, and fetches
    no weights.
    """
    context = Context(inputs, phases, phases if here is None else here)
    for check in CHECKS:
        if check.applies(context):
            _make(check, context)
    return sorted(context.findings, key=lambda found: found.severity != "error")


def _make(check: Check, context: Context) -> None:
    """Make a check; whatever happens in it, the others are made too."""
    try:
        check.run(context)
    except Unavailable:
        pass
    except UserError as error:
        context.add_error(error, check.field)
    except Exception as error:
        if not is_temporary(error):  # a bug of a check, and the run itself reports what it did not find
            _log.warning("preflight: %s failed: %s", check.run.__name__, cause(error), exc_info=True)
            return
        # a run tries again later, so this does not stop it
        context.add(check.field, f"can't be checked now ({cause(error)})", "check the connection", severity="warning")
