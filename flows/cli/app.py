"""The command `alm`. Commands import heavy packages when they run, so that `alm --help` answers at once."""

import logging
from typing import Annotated, Any

import typer

from alm_pipeline.config.fields.unread import refuse_unread
from flows.cli.audit import audit_commands
from flows.cli.compare_methods import compare_methods_commands
from flows.cli.configuration import configuration
from flows.cli.deploy import deploy_commands, version_option
from flows.cli.inspection import inspection
from flows.cli.listing import listing
from flows.cli.models.calibrating import calibrating
from flows.cli.models.editing import editing
from flows.cli.models.hypernet import hypernet_commands
from flows.cli.models.making import making
from flows.cli.models.serving import serving
from flows.cli.models.tokenizers import tokenizer_commands
from flows.cli.models.using import models
from flows.cli.models.writing import writing_commands
from flows.cli.planning import (
    Measure,
    PricePerHour,
    ScoreRate,
    TrainRate,
    answer_if_finished,
    print_summary,
    show_plan,
)
from flows.cli.questions import questions_commands
from flows.cli.store import store
from flows.cli.student import student_commands
from flows.execution import embedded
from flows.stages import Until
from flows.storage_block import storage_root
from flows.terminal.configurations import chosen_configuration, is_file
from flows.terminal.console import InertGroup, JsonOption, err, log_to_stderr, user_errors
from flows.terminal.options import (
    Recipe,
    Storage,
    override_options,
)
from storage.printed.records import make_output_inert

app = typer.Typer(
    cls=InertGroup,
    no_args_is_help=True,
    suggest_commands=False,  # the group names them with what they do
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
Distill any language model into any other, whatever their tokenizers, by **Approximate Likelihood Matching**.

A run cuts a corpus into examples, tokenizes them with the teacher's and the student's tokenizers, aligns the two
tokenizations by bytes, has the teacher score its tokens once, and trains the student on these caches. The results of
every stage stay under the storage root, so an interrupted run can simply be run again.

- `alm run distill --corpus URL --teacher MODEL --student MODEL` distills your own models on your own texts.
- `alm run transfer` gives SmolLM2 a new tokenizer, on this machine, in minutes.
- `alm init my.yaml` asks what you want and writes a commented configuration, and `alm run my.yaml` runs it.
- `alm check my.yaml` finds within seconds what would stop a run, and `alm plan my.yaml` shows what it would do.
- `alm list alm-data` lists what is stored, `alm list --students alm-data` compares the students.
- `alm head URL` shows the first rows of anything stored, `alm inspect URL` aligned chunks side by side.
- `alm audit URL` shows how exact the targets of chunks are, for a teacher and its student.
- `alm compare-methods my.yaml --methods alm+sft,alm,sft` trains students by several methods and compares them.
- `alm on-policy my.yaml` trains on what the student itself writes, `alm write my.yaml --by teacher` on what a teacher
  writes.
- `alm report URL FILE` writes a page about a student, `alm curves URL` draws its training, `alm push URL USER/NAME`
  publishes it.
- `alm edit MODEL FOLDER --demonstrations URL` moves a model's activations by pairs of answers, without training.
- `alm hypernet my.yaml` trains a network that gives a model any tokenizer without training.
- `alm generate MODEL PROMPT` and `alm evaluate MODEL --tasks gsm8k` use a model, or an ensemble of several.
- `alm tokenizers A B --corpus URL` compares tokenizers, `alm compare A B --corpus URL` models, on the same texts.
- `alm calibrate BASE TUNED --questions URL --weights 0:1:0.1` measures accuracy and calibration between two models.
- `alm serve TEACHER` starts a vLLM server that scores, for runs with `score.engine: http`.
- `alm verify`, `alm repair`, `alm lineage` and `alm prune` maintain a store.
""",
)
app.add_typer(configuration)
app.add_typer(student_commands)
app.add_typer(listing)
app.add_typer(inspection)
app.add_typer(audit_commands)
app.add_typer(store)
app.add_typer(models)
app.add_typer(tokenizer_commands)
app.add_typer(making)
app.add_typer(compare_methods_commands)
app.add_typer(questions_commands)
app.add_typer(calibrating)
app.add_typer(editing)
app.add_typer(hypernet_commands)
app.add_typer(serving)
app.add_typer(writing_commands)
app.add_typer(deploy_commands)
app.callback()(version_option)


@app.command()
@override_options
def run(
    recipe: Recipe = "transfer",
    storage: Storage = "alm-data",
    until: Annotated[
        Until, typer.Option(help="Where to stop: after the teacher's scores (scores), or after training (student).")
    ] = "student",
    again: Annotated[
        bool,
        typer.Option("--again", help="Train a finished student again; it stays until the new one is finished."),
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print what the run would do, as `alm plan` does, and stop.")
    ] = False,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Run every stage that is not finished, and print a summary. Where all are finished, nothing is run.

    Without a Prefect server (no PREFECT_API_URL), the run starts its own and stops it at the end.
    """
    embedded.prepare()
    from alm_pipeline.first_lines import first_lines

    with user_errors():
        if plan_only:
            refuse_unread("--plan runs nothing", again=(again, False))
        config, values = chosen_configuration(recipe, overrides)
        for line in first_lines(config, None if is_file(recipe) else recipe, values):
            err.print_line(line)
        if plan_only:
            _quiet_log()
            show_plan(config, storage, until, as_json=as_json)
            return
        if not again and answer_if_finished(config, storage, until, as_json=as_json):
            return
        from alm_pipeline.report import RunSummary
        from alm_pipeline.runtime.progress import progress_bars
        from flows.cli.check import require_ready

        if again:
            _ask_for_student(config, storage)
        log_to_stderr()
        require_ready(config, storage, until)
        from flows.alm import alm  # Prefect takes seconds to import

        embedded.use_server()
        with progress_bars(err):
            result = alm(config=config, storage=storage, until=until)
        seconds, planned = result.pop("seconds"), result.pop("planned")
        print_summary(RunSummary.model_validate(result), seconds, planned, as_json=as_json)
        if until == "student":
            _report_kept_name(config.name, result["name"])


def _report_kept_name(asked: str | None, name: str) -> None:
    """Print that a student which was finished before does not get another name."""
    if asked and name != asked:
        err.print_line(
            f"the student was finished before and keeps its name, {name}; --again trains it again under the name "
            f"{asked}"
        )


@app.command()
@override_options
def plan(
    recipe: Recipe = "transfer",
    storage: Storage = "alm-data",
    until: Annotated[
        Until, typer.Option(help="What to plan: the run up to the teacher's scores (scores), or all of it (student).")
    ] = "student",
    price_per_hour: PricePerHour = None,
    score_rate: ScoreRate = None,
    train_rate: TrainRate = None,
    measure: Measure = False,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Show what a run would do: per stage what is there, what is missing and why, its tokens, bytes and time.

    Takes some ten seconds and writes nothing to the store, whose content is counted. Estimates begin with `~`: they
    come from a sample of the corpus, and from the speed of this machine's earlier runs.
    """
    with user_errors():
        _quiet_log()
        show_plan(
            chosen_configuration(recipe, overrides)[0],
            storage,
            until,
            price_per_hour=price_per_hour,
            score_rate=score_rate,
            train_rate=train_rate,
            measure=measure,
            as_json=as_json,
        )


def _quiet_log() -> None:
    make_output_inert()
    logging.getLogger("alm_pipeline").setLevel("ERROR")


@app.command()
@override_options
def check(
    recipe: Recipe = "transfer",
    storage: Storage = "alm-data",
    until: Annotated[
        Until, typer.Option(help="The run to check: up to the teacher's scores (scores), or with training (student).")
    ] = "student",
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Check a configuration on this machine within seconds, without running it, and print all that would stop a run.

    Looks at the corpus's first rows, both models' files, every setting that names something, and the storage, to which
    it writes one tiny object that it removes. `alm run` begins with the same checks. Exits with 1 if there are errors;
    warnings do not stop a run.
    """
    from flows.cli.check import print_check

    with user_errors():
        config, _ = chosen_configuration(recipe, overrides)
        log_to_stderr()
        print_check(config, storage, until, as_json=as_json)


def _ask_for_student(config: Any, storage: str) -> None:
    """Ask for the finished student, if there is one, to be trained again. It stays until the new one is finished."""
    from alm_pipeline.pipeline import Pipeline

    Pipeline(config, storage_root(storage)).student.request_replacement()
