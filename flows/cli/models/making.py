"""The commands that make a model of others: another tokenizer, a fine-tune's transfer, a merge."""

from typing import Annotated, Any

import typer

from alm_pipeline.config import SEEDS, Method, SpecialTokens
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.merging.rule import MergeMethod, MergeRule, Parent
from flows.cli.models.using import comparison, print_comparison
from flows.terminal.console import JsonOption, err, out, user_errors
from flows.terminal.options import MODEL, Examples, NewFolder, Text, TrustRemoteCode, finite, parse_level

making = typer.Typer()


@making.command()
def byte_level(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help=f"The model or tokenizer whose special tokens to use: {MODEL}.")
    ],
    folder: NewFolder,
) -> None:
    """Write a tokenizer of the 256 single bytes, with the special tokens and chat template of another one."""
    from alm_pipeline.new_tokenizer.byte_level import write_byte_level

    with user_errors():
        tokenizer = write_byte_level(source, folder)
        out.print_line(f"{folder}: {len(tokenizer)} tokens, {len(tokenizer) - 256} of them special tokens")


@making.command()
def transfer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL}.")],
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=f"The new tokenizer: {MODEL}.")],
    folder: NewFolder,
    initialization: Annotated[
        Method, typer.Option(help="How to make the embeddings of tokens that the model does not have.")
    ] = "fvt",
    level: Annotated[
        Any,
        typer.Option(
            parser=parse_level,
            metavar="measured|none|NATS",
            help="How many nats the logits of new tokens lose: as measured on a sample of prose and code, none, or N.",
        ),
    ] = "measured",
    special_tokens: Annotated[
        SpecialTokens,
        typer.Option(help="Whose special tokens to use: the model's (source), the tokenizer's (target), or auto."),
    ] = "auto",
    template: Annotated[
        str | None,
        typer.Option(
            help="The chat template of the new model: a file with a Jinja template, chatml, plain, or the name of one "
            "that the tokenizer has."
        ),
    ] = None,
    donor: Annotated[str | None, typer.Option(help="With omp: the model that has the new tokenizer.")] = None,
    omp_terms: Annotated[
        int, typer.Option(min=1, help="With omp: the number of shared tokens that a new one is composed of.")
    ] = 8,
    hypernetwork: Annotated[
        str | None,
        typer.Option(
            help="With hypernetwork: the folder or URL of one that `alm hypernet` trained for the model, such as "
            "alm-data/hypernetworks/NAME."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="The seed of random embeddings.")] = 0,
    corpus: Annotated[str | None, typer.Option(help="URL of texts to compare both models on.")] = None,
    text: Text = "text",
    examples: Examples = 200,
    as_json: JsonOption = False,
) -> None:
    """Give a model a new tokenizer without training it, and print how its embeddings were made.

    With --corpus, also print the bits per byte of both models on those texts.
    """
    from alm_pipeline.comparison.corpora import named_corpora, require_texts
    from alm_pipeline.runtime.progress import progress_bars
    from alm_pipeline.tokenization.templates.choice import TemplateChoice
    from alm_pipeline.transfer.zero_step import transfer

    with user_errors(), progress_bars(err):
        if corpus:
            require_texts(named_corpora([corpus], text, examples))
        else:
            refuse_unread("no corpus is named", text=(text, "text"), examples=(examples, 200))
        counts, found = transfer(
            model,
            tokenizer,
            folder,
            initialization=initialization,
            level=level,
            special_tokens=special_tokens,
            template=TemplateChoice.of("--template", template),
            donor=donor,
            omp_terms=omp_terms,
            hypernetwork=hypernetwork,
            seed=seed,
        )
        if not as_json:
            embeddings = ", ".join(f"{count:,} {how}" for how, count in counts.items())
            out.print_line(f"{folder}: new embeddings: {embeddings}")
            if found:
                out.print_line(f"{folder}: {found}")
        compared = comparison([model, str(folder)], [corpus], text, examples) if corpus else None
        if as_json:
            record = found.record() if found else None
            out.write_json(
                {"folder": str(folder), "new_embeddings": dict(counts), "level": record, "comparison": compared}
            )
        elif compared:
            print_comparison(compared)


@making.command()
def apply_transfer(
    base: Annotated[str, typer.Argument(metavar="BASE", help=f"The base model: {MODEL}.")],
    transferred: Annotated[
        str,
        typer.Argument(
            metavar="TRANSFERRED",
            help="The base model after its transfer to the new tokenizer; with --hypernetwork, the tokenizer.",
        ),
    ],
    fine_tune: Annotated[str, typer.Argument(metavar="FINE_TUNE", help="A fine-tune of the base model.")],
    folder: NewFolder,
    scale: Annotated[
        float, typer.Option(callback=finite, help="The weight (lambda) of what the transfer changed in the base.")
    ] = 1.0,
    hypernetwork: Annotated[
        str | None,
        typer.Option(help="The folder or URL of a hypernetwork of the base, which makes the transfer on the way."),
    ] = None,
) -> None:
    """Give a fine-tune the tokenizer that its base model was transferred to, by task arithmetic.

    With --hypernetwork, the base needs no transfer of its own: TRANSFERRED is the name of a tokenizer.
    """
    from alm_pipeline.hypernetwork.fine_tunes import apply_hypernetwork
    from alm_pipeline.transfer.task_arithmetic import apply_transfer

    with user_errors():
        if hypernetwork:
            apply_hypernetwork(base, transferred, fine_tune, folder, hypernetwork, scale=scale)
        else:
            apply_transfer(base, transferred, fine_tune, folder, scale=scale)
        out.print_line(f"{folder}: {fine_tune} with the tokenizer of {transferred}")


@making.command()
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help=f"The base model: {MODEL}.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Its tuned child: a fine-tune of the same base.")],
    folder: NewFolder,
    weight: Annotated[
        float, typer.Option(callback=finite, help="The weight (lambda) of the child: 0 is the base, 1 the child.")
    ] = 0.5,
    method: Annotated[MergeMethod, typer.Option(help="The rule by which each tensor is merged.")] = "linear",
    density: Annotated[
        float,
        typer.Option(callback=finite, help="With ties and dare: the share of the child's changes that is kept."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="With dare: the seed of what is kept.")] = 0,
    template: Annotated[
        Parent, typer.Option(help="The parent whose tokenizer, chat template and settings the result has.")
    ] = "tuned",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Merge a base model and its tuned child: a model between what both are good at, without training."""
    from alm_pipeline.merging.merge import merge_models

    with user_errors():
        rule = MergeRule(method, weight, density, seed)
        merge_models(base, tuned, folder, rule, template=template, trust_remote_code=trust_remote_code)
        out.print_line(f"{folder}: {base} and {tuned}, {rule}")
