"""The commands on evaluation sets: tasks over local files, and what of their questions a corpus contains."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from alm_pipeline.evaluation.local_tasks import TaskKind, write_task
from flows.terminal.configurations import chosen_configuration
from flows.terminal.console import JsonOption, Shown, err, out, show_count, user_errors
from flows.terminal.options import Recipe, Text, override_options
from storage.printed.counts import counts_in_words

questions_commands = typer.Typer()
CONTAMINATED = (
    Shown("question", "question"),
    Shown("share", "its n-grams", "{:.0%}".format),
    Shown("example", "first in example"),
)


@questions_commands.command()
def make_task(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of your tasks; created if needed.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The task's name.")],
    questions: Annotated[
        Path, typer.Option(metavar="FILE", help="The questions: JSON lines, CSV or Parquet.", show_default=False)
    ],
    kind: Annotated[
        TaskKind,
        typer.Option(
            help="multiple_choice (columns question, choices, answer: the right one's number), cloze (text: its last "
            "word is predicted), or gsm8k (question, answer that ends in `#### NUMBER`: generated)."
        ),
    ] = "multiple_choice",
    few_shot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Other questions, of which prompts get examples.")
    ] = None,
) -> None:
    """Write a task of lm_eval over a local file. `alm evaluate --task-folder FOLDER --tasks NAME` runs it."""
    with user_errors():
        file = write_task(folder, name, kind, questions, few_shot)
        out.print_line(f"{file}: written. Run it: alm evaluate MODEL --task-folder {folder} --tasks {name}")


@questions_commands.command()
@override_options
def contamination(
    recipe: Recipe = "transfer",
    questions: Annotated[str, typer.Option(metavar="URL", help="The questions' file.")] = "",
    text: Text = "{question} {answer}",
    n: Annotated[
        int, typer.Option("--words", min=1, help="The number of words in a row that count as contained.")
    ] = 13,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Count the questions of an evaluation set of which a configuration's corpus contains n words in a row.

    Case and punctuation don't count. The corpus is read as a run reads it. Nothing is removed from it.
    """
    from alm_pipeline.corpus.contamination import find_contamination, question_texts
    from alm_pipeline.corpus.formats.layouts import resolve_layout
    from alm_pipeline.corpus.sources import open_source
    from alm_pipeline.recipes.overrides import corpus_at
    from alm_pipeline.runtime.progress import progress_bars
    from storage.errors import UserError

    with user_errors(), progress_bars(err):
        if not questions:
            raise UserError("--questions: name the file of the evaluation set, as in --questions gsm8k-test.jsonl")
        config, _ = chosen_configuration(recipe, overrides)
        corpora = [resolve_layout(part.texts, open_source(part.texts.source)) for part in config.parts]
        left_out = Counter[str]()
        texts = question_texts(corpus_at(questions, {"layout": "text", "text": text}), left_out)
        if not texts:
            reasons = counts_in_words(left_out, "no row was read")
            raise UserError(f"--questions {questions}: has no question ({reasons}): check the file, and --text")
        found = find_contamination(corpora, texts, n)
    rows = [{"question": id_, "share": share, "example": found.where[id_]} for id_, share in found.shares.items()]
    if as_json:
        out.write_json(
            {
                "questions": found.questions,
                "questions_left_out": dict(left_out),
                "contaminated": len(rows),
                "examples": found.examples,
                "dropped": dict(found.dropped),
                "rows": rows,
            }
        )
        return
    if rows:
        out.print_rows(CONTAMINATED, rows, f"questions of which the corpus has {n} words in a row")
    out.print_line(
        f"{show_count(len(rows))} of {show_count(found.questions)} questions ({found.share:.1%}) are in "
        f"{show_count(found.examples)} examples"
    )
    for of, counts in (("questions", left_out), ("documents", found.dropped)):
        for reason, count in counts.items():
            out.print_line(f"left out, {of}, {reason}: {show_count(count)}")
