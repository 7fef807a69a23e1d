"""The commands that print and write configurations."""

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from alm_pipeline.config import BYTES
from alm_pipeline.config.fields.spelling import did_you_mean, nearest
from alm_pipeline.config.fields.values import parse_text
from alm_pipeline.recipes.recipes import Goal
from flows.terminal.configurations import chosen_overrides, is_file
from flows.terminal.console import err, out, user_errors
from flows.terminal.options import MODEL, Recipe, override_options
from storage.errors import UserError
from storage.printed.inert import one_line
from storage.printed.secrets import has_secrets

if TYPE_CHECKING:
    from alm_pipeline.config import AlmConfig, CorpusConfig

configuration = typer.Typer()


@configuration.command()
@override_options
def show(recipe: Recipe = "transfer", **overrides: Any) -> None:
    """Print a configuration as YAML to edit and run: every field with its meaning, its values and its default.

    What a recipe needs and was not given is null.
    """
    from alm_pipeline.config import AlmConfig, load_config
    from alm_pipeline.config.fields.commented import commented_yaml
    from alm_pipeline.recipes.overrides import configured_content, override
    from alm_pipeline.recipes.recipes import RECIPES

    with user_errors():
        values = chosen_overrides(overrides)
        if is_file(recipe):
            content = override(load_config(Path(recipe)), values).model_dump(mode="json")
            heading = f"The configuration {recipe}."
        else:
            content = configured_content(recipe, values)
            heading = inspect.cleandoc(RECIPES[recipe].__doc__ or "")
        out.write(commented_yaml(AlmConfig, content, heading))


@configuration.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new YAML file to write.")] = Path("alm.yaml"),
    goal: Annotated[
        Goal | None,
        typer.Option(
            help="What the student gets: the teacher's knowledge with its own tokenizer (distill), with a new "
            "tokenizer (tokenizer), or with bytes (bytes)."
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="URL of Parquet, Arrow, JSON, CSV or text files to use as the corpus.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            parser=parse_text,
            metavar="TEXT",
            help="The column that holds the text, or a template: '{question} {answer}'. Default: by the columns.",
        ),
    ] = None,
    messages: Annotated[
        str | None, typer.Option(help="The column that holds conversations. Default: by the columns.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help=f"The teacher: {MODEL}.")] = None,
    student: Annotated[str | None, typer.Option(help=f"The student: {MODEL}.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help=f"With the goal tokenizer: {MODEL}, whose tokenizer the student gets. Default: a new one."),
    ] = None,
) -> None:
    """Write a configuration for your own models and texts, with a comment for every field.

    In a terminal it asks for what is not given. It looks at the first rows of the corpus, and chooses the columns.
    """
    from alm_pipeline.recipes.recipes import own_run

    with user_errors():
        _require_new(file)
        goal = _goal(goal, tokenizer)
        _require_answers({"corpus": corpus, "student": student, "teacher": teacher or (goal != "distill" and student)})
        texts = _corpus_of(corpus or _ask("URL or path of the corpus"), text, messages)
        model = student or _ask(f"Student ({MODEL})")
        source = teacher or _ask(f"Teacher ({MODEL})", None if goal == "distill" else model)
        if goal == "tokenizer" and tokenizer is None:
            tokenizer = _ask("New tokenizer (a folder or a name; empty: train one on the corpus)", "") or None
        config = own_run(goal, texts, source, model, tokenizer)
        _write_new(file, config)
        out.print_line(
            f"{file}: written. Run it: alm run {file}\n"
            f"A short first try: alm run {file} --steps 10 --set train.warmup_steps=1"
        )


def _require_new(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise UserError(f"{file}: exists already, and is not overwritten: name another file")
    if not is_file(str(file)) or file.suffix == ".json":
        raise UserError(f"{file}: a configuration's name ends in .yaml, such as {file.stem}.yaml")


def _require_answers(answers: Mapping[str, object]) -> None:
    """Raise UserError naming the options that are missing, where nobody can be asked."""
    missing = [f"--{name}" for name, answer in answers.items() if not answer]
    if missing and not sys.stdin.isatty():
        raise UserError(f"alm init: add {', '.join(missing)}: only in a terminal can it ask for what is not given")


def _ask(question: str, default: str | None = None) -> str:
    """Return the answer to a question; without a terminal, the default."""
    if default is not None and not sys.stdin.isatty():
        return default
    answer: str = typer.prompt(one_line(question), default=default, err=True)
    return answer.strip()


def _goal(goal: Goal | None, tokenizer: str | None) -> Goal:
    """Return the goal, asked for until it is one; by default that of the tokenizer, or `distill`."""
    if tokenizer is not None and goal != "tokenizer":
        if goal is not None:
            raise UserError(f"--tokenizer {tokenizer}: only with --goal tokenizer, not with --goal {goal}")
        return "bytes" if tokenizer == BYTES else "tokenizer"
    while goal is None:
        answer = _ask(f"Goal ({', '.join(get_args(Goal))})", "distill")
        goal = next((known for known in get_args(Goal) if known == answer), None)
        if goal is None:
            hint = did_you_mean(dict.fromkeys(nearest(answer, get_args(Goal)), ""))
            err.print_line(f"{answer} is not one of {', '.join(get_args(Goal))}{hint}")
    return goal


def _corpus_of(url: str, text: str | None, messages: str | None) -> "CorpusConfig":
    """Return the corpus at a URL. What is read of its rows is as given, or as its columns suggest."""
    from alm_pipeline.corpus.columns import column_kinds, first_rows, proposed_settings
    from alm_pipeline.first_lines import first_document, template_lines
    from alm_pipeline.recipes.overrides import corpus_at

    given = {name: value for name, value in (("text", text), ("messages", messages)) if value is not None}
    if len(given) > 1:
        raise UserError("--text and --messages: a corpus has texts or conversations: give one of the two")
    rows = first_rows(corpus_at(url).source)
    columns = ", ".join(f"{name} ({kind})" for name, kind in column_kinds(rows).items()) or "none"
    err.print_line(f"columns: {columns}")
    settings = given or proposed_settings(rows)
    if not given:
        what = {"text": "a column or a template", "messages": "a column"}
        asked = {name: _ask(f"corpus.{name}, {what[name]}", _typed(value)) for name, value in settings.items()}
        settings = {name: parse_text(answer) for name, answer in asked.items()}
        if not sys.stdin.isatty():  # where it asked, the answers are there to be seen
            for name, value in settings.items():
                err.print_line(f"corpus.{name}: {_typed(value)}, by the columns; --{name} sets another")
    corpus = corpus_at(url, settings)
    first_document(corpus)  # raises what is wrong with it
    for line in template_lines(corpus):
        err.print_line(line)
    return corpus


def _typed(text: str) -> str:
    """Return a text as it is typed: in double quotes if it has line ends, or would be read as another one."""
    return text if "\n" not in text and parse_text(text) == text else json.dumps(text, ensure_ascii=False)


def _write_new(file: Path, config: "AlmConfig") -> None:
    """Write a configuration to a file that does not exist yet."""
    from alm_pipeline.config import AlmConfig
    from alm_pipeline.config.fields.commented import commented_yaml

    plain = config.model_dump(mode="json")
    if has_secrets(plain):
        raise UserError(
            f"{file}: a password or signature in a URL would be stored in the file: write ${{NAME}} in its place, and "
            "set this environment variable for the run"
        )
    content = commented_yaml(AlmConfig, plain, f"Written by `alm init`. To run it: alm run {one_line(file)}")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(content)
    except OSError as error:
        raise UserError(f"{file}: can't be written ({error.strerror or error})") from error
