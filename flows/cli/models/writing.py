"""The commands `alm on-policy` and `alm write`: rounds in which the student writes, and texts that a model writes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.execution import embedded
from flows.storage_block import is_block, storage_root
from flows.terminal.configurations import chosen_configuration
from flows.terminal.console import JsonOption, err, log_to_stderr, out, user_errors
from flows.terminal.options import Recipe, Storage, override_options

if TYPE_CHECKING:
    from alm_pipeline.config import AlmConfig

writing_commands = typer.Typer()


@writing_commands.command()
@override_options
def on_policy(
    recipe: Recipe = "distill",
    storage: Storage = "alm-data",
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Train a student in on-policy rounds: it writes, the teacher scores what it wrote, and it is trained on that.

    The section `rounds` of the configuration says how many rounds, and how. Every part is a dataset or student of the
    store like any other. Interrupted anywhere, the same command goes on; where all is finished, it answers at once.
    Prints what each student is worth on what it writes itself.
    """
    embedded.prepare()
    with user_errors():
        from alm_pipeline.runtime.progress import progress_bars

        config, _ = chosen_configuration(recipe, overrides)
        result = _finished(config, storage)
        if result is None:
            log_to_stderr()
            _require_ready(config, storage)
            from flows.models.on_policy import on_policy as run_rounds

            embedded.use_server()
            with progress_bars(err):
                result = run_rounds(config=config, storage=storage)
        out.write_json(result) if as_json else _print(result)


def _finished(config: "AlmConfig", storage: str) -> dict[str, Any] | None:
    """Return the results of rounds that are finished, without a server or any model."""
    from alm_pipeline.rounds.on_policy import OnPolicy

    if is_block(storage):  # its place is known to the server alone
        return None
    rounds = OnPolicy(config, storage_root(storage))
    manifest = rounds.finished()
    return {"rounds": rounds.folder.url, **manifest.results} if manifest else None


def _require_ready(config: "AlmConfig", storage: str) -> None:
    """Raise UserError for what would stop the rounds, before a server starts."""
    from alm_pipeline.rounds.on_policy import OnPolicy

    if not is_block(storage):
        rounds = OnPolicy(config, storage_root(storage))
        rounds.start.require_ready()
        rounds.require_ready()


def _print(result: Mapping[str, Any]) -> None:
    measures: Sequence[Mapping[str, Any]] = result["measures"]
    students = sorted({row["student"] for row in measures})
    values = {(row["domain"], row["measure"], row["student"]): row for row in measures}
    names = list(dict.fromkeys((row["domain"], row["measure"]) for row in measures))
    domains = {domain for domain, _ in names}
    header = ["measure", *(f"student {student}" for student in students)]
    rows = [
        [
            measure if len(domains) == 1 else f"{domain}: {measure}",
            *(_cell(values.get((domain, measure, student))) for student in students),
        ]
        for domain, measure in names
    ]
    out.print_table(header, rows, "what each student is worth on what it writes itself (95 % intervals)")
    out.print_line(f"{result['rounds']}: rounds.json, rounds.parquet, units.parquet and rounds.png")


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    low, high = row["low"], row["high"]
    return f"{row['value']:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low is not None else "")


@writing_commands.command()
@override_options
def write(
    recipe: Recipe = "distill",
    by: Annotated[
        str,
        typer.Option(
            metavar="teacher|student|URL",
            help="Who writes: the teacher, the model that the student begins with, or an OpenAI-compatible server, by "
            "its URL up to /v1 (a key is read from OPENAI_API_KEY).",
        ),
    ] = "teacher",
    model: Annotated[str | None, typer.Option(help="With a server: the model's name there.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="With a server: what tells another state of a model of this name apart.")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help="How many of the examples that are trained on give a prompt. Default: all."),
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="How many held-out examples give a prompt. Default: all.")
    ] = None,
    storage: Storage = "alm-data",
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Let a model write on the prompts of a corpus, and keep that as examples to train on.

    `rounds.sampling` and `rounds.prompts` say how it writes, and what is a prompt. Every answer of a server is kept as
    soon as it is there, so an interrupted run asks for none twice. Prints the source of a corpus to train on.
    """
    embedded.prepare()
    with user_errors():
        from alm_pipeline.rounds.writing import WriterChoice, Writing
        from alm_pipeline.runtime.progress import progress_bars

        config, _ = chosen_configuration(recipe, overrides)
        choice = WriterChoice(by, model, revision)
        log_to_stderr()
        if not is_block(storage):  # raises what is wrong before a server starts
            Writing(config, storage_root(storage), choice, prompts, held_out).require_ready()
        from flows.models.on_policy import write as write_texts

        embedded.use_server()
        with progress_bars(err):
            result = write_texts(
                by,
                config=config,
                storage=storage,
                model=model,
                revision=revision,
                prompts=prompts,
                held_out=held_out,
            )
        out.write_json(result) if as_json else _print_written(result["examples"])


def _print_written(examples: Sequence[Mapping[str, Any]]) -> None:
    for written in examples:
        out.print_line(f"{written['url']}: {written['texts']:,} texts, {written['written_tokens']:,} tokens written")
        for reason, count in written["left_out"].items():
            out.print_line(f"  left out, {reason}: {count:,}")
        out.print_line(f"train on it with corpus.source: {{kind: written, examples: {written['url']}}}")
