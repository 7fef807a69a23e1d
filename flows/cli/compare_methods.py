"""The command `alm compare-methods`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.execution import embedded
from flows.storage_block import is_block
from flows.terminal.configurations import chosen_configuration
from flows.terminal.console import JsonOption, err, log_to_stderr, out, user_errors
from flows.terminal.options import Recipe, Storage, override_options
from storage.errors import UserError

compare_methods_commands = typer.Typer()


@compare_methods_commands.command()
@override_options
def compare_methods(
    recipe: Recipe = "transfer",
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,…",
            help="Built-in methods (alm, alm+sft, alm-published, bpm+sft, sft, uld, mined, dskd, gold, simct, "
            "untrained) or those of --definitions. The first one is what the others are compared with.",
        ),
    ] = "alm+sft,alm,sft",
    seeds: Annotated[int, typer.Option(min=1, help="The number of students per method.")] = 3,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL", help="Texts to measure on beside what the corpus itself holds out; repeat for more."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="The number of documents to take from each domain.")] = 200,
    definitions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML with methods and domains of your own: `methods: {NAME: {FIELD: VALUE}}`, `domains: {NAME: "
            "{a corpus's fields}}`.",
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(metavar="NAME,NAME,…", help="Tasks of lm_eval.")] = None,
    task_folder: Annotated[Path | None, typer.Option(help="A folder with your own YAML tasks.")] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, help="The number of examples in the tasks' prompts. Default: the task's own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The number of examples per task. Default: all.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the tasks' prompts into the tokenizer's chat template.")
    ] = False,
    storage: Storage = "alm-data",
    folder: Annotated[
        str | None,
        typer.Option(help="URL of a folder for the results. Default: comparisons/NAME under the storage root."),
    ] = None,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Train students by several methods on the same caches, and print what they are worth side by side.

    The teacher is scored once. Every student is a run like that of `alm run` with another objective and seed, kept in
    the store; an interrupted comparison is simply run again. Tables give the mean over the seeds and the 95 % interval
    of the difference from the first method, paired by document and seed. The folder gets them, all single measurements
    as Parquet, and two pictures.
    """
    embedded.prepare()
    with user_errors():
        from alm_pipeline.runtime.progress import progress_bars

        config, _ = chosen_configuration(recipe, overrides)
        domains = _domains(domain or ())
        own = _read(definitions) if definitions else None
        log_to_stderr()
        from flows.models.compare import ComparisonRequest, compare

        request = ComparisonRequest(
            config=config,
            storage=storage,
            methods=_names(methods),
            seeds=seeds,
            domains=domains,
            examples=examples,
            definitions=own,
            tasks=_names(tasks or ""),
            task_folder=str(task_folder) if task_folder else None,
            few_shot=few_shot,
            limit=limit,
            chat=chat,
            folder=folder,
        )
        if not is_block(storage):  # its place is known to the server alone
            request.comparison().require_ready()
        embedded.use_server()
        with progress_bars(err):
            result = compare(**{name: getattr(request, name) for name in ComparisonRequest.model_fields})
        out.write_json(result) if as_json else _print(result)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _domains(texts: Sequence[str]) -> dict[str, str]:
    domains: dict[str, str] = {}
    for name, url in map(_domain, texts):
        if name in domains:
            raise UserError(f"--domain {name}: is named twice: give each domain a name of its own")
        domains[name] = url
    return domains


def _domain(text: str) -> tuple[str, str]:
    name, separator, url = text.partition("=")
    if not separator or not name or not url:
        raise UserError(f"--domain {text}: write NAME=URL, as in --domain maths=gsm8k.jsonl")
    return name, url


def _read(definitions: Path) -> Any:
    from alm_pipeline.methods.definitions import Definitions, read_definitions

    content = read_definitions(definitions)
    Definitions.parse(content, str(definitions))  # the file's name belongs into the error
    return content


def _print(result: Mapping[str, Any]) -> None:
    from alm_pipeline.methods.tables import shown_tables

    for title, header, rows in shown_tables(result):
        out.print_table(header, rows, title)
    out.print_line(f"{result['folder']}: comparison.md, comparison.json, units.parquet and pictures")
