"""The flows on finished models.

`transfer`, `edit` and `ensemble` make one, `evaluate` measures any, `audit` their targets. `tokenizers` compares
tokenizers.

They write into a folder that the worker reaches: on its own disk, or on one that its machines share.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import Field

from alm_pipeline.config import SEEDS, Dtype, Method, Number, ScoreConfig, SpecialTokens, TemplateConfig, Whole
from alm_pipeline.config.fields.repeated import each_once
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.editing.directions.settings import (
    ActivationConfig,
    DemonstrationsConfig,
    EditConfig,
    EditEvaluationConfig,
)
from alm_pipeline.ensemble.config import (
    FILE,
    EnsembleConfig,
    Mean,
    MemberConfig,
    SharedTokens,
    read_config,
    refuse_settings_of_ensembles,
    write_config,
)
from flows.execution.inert_run import inert_flow, inert_run
from flows.run_name import run_name
from flows.storage_block import storage_root
from flows.tasks import log_stages_at_info
from storage.errors import UserError
from storage.printed.counts import counts_in_words
from storage.printed.inert import markdown, markdown_code, one_line

if TYPE_CHECKING:
    from alm_pipeline.audit.numbers import AuditReport

Count = Annotated[Whole, Field(ge=1)]
Nats = Annotated[Number, Field(ge=-20, le=20)]
Results = dict[str, dict[str, float]]


_evaluation_name = run_name("evaluate", lambda parameters: f"evaluate {', '.join(parameters['models'])}")
_transfer_name = run_name(
    "transfer", lambda parameters: f"transfer {parameters['model']} to the tokenizer of {parameters['tokenizer']}"
)
_tokenizers_name = run_name("tokenizers", lambda parameters: f"compare {', '.join(parameters['names'])}")
_edit_name = run_name("edit", lambda parameters: f"edit {parameters['model']}: {parameters['folder']}")
_audit_name = run_name("audit", lambda parameters: f"audit {parameters['url']}")
_ensemble_name = run_name("ensemble", lambda parameters: f"ensemble {parameters['folder']}")


@inert_flow("evaluate", _evaluation_name)
def evaluate(
    models: list[str],
    corpus: str | list[str] | None = None,
    text: str = "text",
    examples: Count = 200,
    by: str | None = None,
    tasks: list[str] | None = None,
    task_folder: str | None = None,
    few_shot: Annotated[Whole, Field(ge=0)] | None = None,
    limit: Count | None = None,
    batch_size: Count = 1,
    chat: bool = False,
    template: str | TemplateConfig | None = None,
    think_end: str | None = None,
    dtype: Dtype = "float32",
    trust_remote_code: bool = False,
) -> Results:
    """Measure models and ensembles side by side: bits per byte on texts, and tasks of lm-evaluation-harness.

    Args:
        models: Local folders, URLs of stored students, names on the Hub, demo:NAME, or YAML files of ensembles.
        corpus: URL of Parquet, Arrow, JSON, CSV or text files to measure bits per byte on, or NAME=URL of several.
        text: The column of the corpus that holds the text, or a template of columns: '{question} {answer}'.
        examples: The number of texts to take from each corpus.
        by: Also measure by the values of this column of the corpus, or by `script`.
        tasks: Names of lm_eval tasks.
        task_folder: A folder with your own YAML tasks.
        few_shot: The number of examples in the prompt; by default the task's own.
        limit: The number of examples per task; by default all.
        batch_size: The number of rows per batch for tasks.
        chat: Whether to put the tasks' prompts into the tokenizer's chat template.
        template: The chat template to put them into: a file, a known name, or a mapping with `arguments`.
        think_end: Where a model's reasoning ends in the tasks' answers, such as </think>.
        dtype: The dtype to compute in; an ensemble's file sets its own.
        trust_remote_code: Whether to run code in a model's folder, such as that of a byte-level student.
    """
    with inert_run():
        if not corpus and not tasks:
            raise UserError("corpus, tasks: nothing to measure: name a corpus, tasks of lm_eval, or both")
        log_stages_at_info()
        folder = Path(task_folder) if task_folder else None
        if not corpus:
            refuse_unread("no corpus is named", text=(text, "text"), examples=(examples, 200), by=(by, None))
        if not tasks:
            of_tasks: dict[str, tuple[object, object]] = {
                "few_shot": (few_shot, None),
                "limit": (limit, None),
                "batch_size": (batch_size, 1),
            }
            of_tasks |= {"chat": (chat, False), "template": (template, None), "think_end": (think_end, None)}
            refuse_unread("no tasks are named", task_folder=(task_folder, None), **of_tasks)
        else:
            from alm_pipeline.ensemble.tasks import lm_eval_harness

            lm_eval_harness().check_tasks(tasks, folder)  # not after texts were measured
        results: Results = {model: {} for model in models}
        if corpus:
            corpora = [corpus] if isinstance(corpus, str) else corpus
            found = _bits_per_byte(models, corpora, text, examples, dtype, trust_remote_code, by)
            results = {model: dict(bits) for model, bits in found.items()}
        if tasks:
            from alm_pipeline.tokenization.templates.choice import TemplateChoice

            settings: dict[str, Any] = {"few_shot": few_shot, "limit": limit, "batch_size": batch_size, "chat": chat}
            settings |= {"template": TemplateChoice.of("template", template), "think_end": think_end}
            settings |= {"dtype": dtype, "trust_remote_code": trust_remote_code}
            harness = lm_eval_harness()
            all_results = harness.evaluate(models, tasks, task_folder=folder, **settings)
            for model, task_results in zip(models, all_results, strict=True):
                results[model] |= harness.metrics(task_results)
        _show_results(results)
        return results


def _bits_per_byte(
    models: Sequence[str],
    corpora: Sequence[str],
    text: str,
    examples: int,
    dtype: Dtype,
    trust_remote_code: bool,
    by: str | None = None,
) -> Results:
    """Return each model's bits per byte of all texts, and by corpus and group; their intervals become an artifact."""
    from alm_pipeline.comparison.corpora import named_corpora
    from alm_pipeline.comparison.texts import compare_models

    refuse_settings_of_ensembles(models, dtype=dtype, trust_remote_code=trust_remote_code)
    texts, score = named_corpora(corpora, text, examples), ScoreConfig(dtype=dtype)
    comparison = compare_models(models, texts, score, by=by, trust_remote_code=trust_remote_code)
    left_out, total = counts_in_words(comparison.left_out), comparison.total
    places = ", ".join(corpora)
    get_run_logger().info("%s: %d texts, %d bytes; left out: %s", places, total.texts, total.text_bytes, left_out)
    rows = comparison.rows(models)
    table = [{name: _cell(value) for name, value in row.items()} for row in rows]
    description = "Bits per byte with 95 % intervals, and differences to the first model on the same resamples"
    create_table_artifact(table, key="alm-bits-per-byte", description=description)
    results: Results = {model: {} for model in models}
    for row in rows:
        name = ", ".join(filter(None, ("bits per byte", row["corpus"], row["group"])))
        if row["bits_per_byte"] is not None:
            results[row["model"]][name] = row["bits_per_byte"]
    return results


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else one_line(value)


def _show_results(results: Mapping[str, Mapping[str, float]]) -> None:
    rows = [
        {"model": one_line(model), **{one_line(name): f"{value:.4f}" for name, value in values.items()}}
        for model, values in results.items()
    ]
    create_table_artifact(rows, key="alm-evaluation", description="Bits per byte, and results of tasks")
    for row in rows:
        get_run_logger().info("%s", ", ".join(f"{name}: {value}" for name, value in row.items()))


@inert_flow("transfer", _transfer_name)
def transfer(
    model: str,
    tokenizer: str,
    folder: str,
    initialization: Method = "fvt",
    level: Literal["measured", "none"] | Nats = "measured",
    special_tokens: SpecialTokens = "auto",
    template: str | TemplateConfig | None = None,
    donor: str | None = None,
    omp_terms: Count = 8,
    hypernetwork: str | None = None,
    seed: Annotated[Whole, Field(ge=0, lt=SEEDS)] = 0,
    corpus: str | None = None,
    text: str = "text",
    examples: Count = 200,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Give a model a new tokenizer without training it. To train it as well, run alm/distill with `tokenizer`.

    Args:
        model: The model: a local folder, a name on the Hub, or demo:NAME.
        tokenizer: The new tokenizer: a local folder, a name on the Hub, or demo:NAME.
        folder: A new folder to write the model to.
        initialization: How to make the embeddings of tokens that the model does not have.
        level: How many nats new tokens' logits lose: as measured on a sample of prose and code, none, or a number.
        special_tokens: Whose special tokens to use: the model's (source), the tokenizer's (target), or auto.
        template: The chat template of the new model: a file, a known name, or a mapping with `arguments`.
        donor: With omp, the model that has the new tokenizer.
        omp_terms: With omp, the number of shared tokens that make up a new one.
        hypernetwork: With hypernetwork, the folder or URL of one that alm/hypernet trained for the model.
        seed: The seed of random embeddings.
        corpus: URL of texts to compare both models on.
        text: The column of the corpus that holds the text, or a template of columns: '{question} {answer}'.
        examples: The number of texts to take from the corpus.
        trust_remote_code: Whether to run code in the model's folder.
    """
    with inert_run():
        from alm_pipeline.comparison.corpora import named_corpora, require_texts
        from alm_pipeline.tokenization.templates.choice import TemplateChoice
        from alm_pipeline.transfer import zero_step

        log_stages_at_info()
        if corpus:
            require_texts(named_corpora([corpus], text, examples))
        else:
            refuse_unread("no corpus is named", text=(text, "text"), examples=(examples, 200))
        counts, found = zero_step.transfer(
            model,
            tokenizer,
            folder,
            initialization=initialization,
            level=level,
            special_tokens=special_tokens,
            template=TemplateChoice.of("template", template),
            donor=donor,
            omp_terms=omp_terms,
            hypernetwork=hypernetwork,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
        rows = [{"new embeddings": how, "tokens": f"{count:,}"} for how, count in counts.items()]
        description = markdown(f"{model} with the tokenizer of {tokenizer}: {folder}")
        create_table_artifact(rows, key="alm-transfer", description=description)
        result = {"folder": folder, "new_embeddings": counts, "level": found.record() if found else None}
        if found:
            get_run_logger().info("%s", found)
        if not corpus:
            return result
        measured = _bits_per_byte([model, folder], [corpus], text, examples, "float32", trust_remote_code)
        _show_results(measured)
        return {**result, "bits_per_byte": {name: bits["bits per byte"] for name, bits in measured.items()}}


@inert_flow("edit", _edit_name)
def edit(
    model: str,
    folder: str,
    demonstrations: DemonstrationsConfig,
    storage: str = "alm-data",
    activations: ActivationConfig | None = None,
    edit: EditConfig | None = None,
    evaluation: EditEvaluationConfig | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Edit a model's activations by demonstrations, without training, and measure what that does.

    Every stage is stored, so another edit of the same demonstrations computes its projections alone.

    Args:
        model: The model: a local folder, a name on the Hub, or demo:NAME.
        folder: A new folder to write the edited model to.
        demonstrations: Prompts, each with an answer to move to and one to move away from.
        storage: The storage root, where answers, activations and projections are stored: a folder, URL or block:NAME.
        activations: What is read of the model, and where.
        edit: The method and its settings.
        evaluation: What the model is measured on before and after the edit, besides control texts.
        trust_remote_code: Whether to run code in the model's folder.
    """
    with inert_run():
        from alm_pipeline.editing.edit import Editing, describe
        from alm_pipeline.preflight.storage_probe import require_writable
        from alm_pipeline.provenance import provenance_of

        log_stages_at_info()
        require_writable("folder", Path(folder).parent)
        editing = Editing(
            model,
            demonstrations,
            storage_root(storage),
            activations or ActivationConfig(),
            edit or EditConfig(),
            trust_remote_code,
        )
        editing = replace(editing, provenance=provenance_of(editing.configuration))
        record, measures = editing.run(folder, evaluation)
        get_run_logger().info("%s: %s", folder, describe(record))
        _show_edit(folder, measures)
        return {"folder": folder, "record": record, "measures": measures}


def _show_edit(folder: str, measures: Sequence[Mapping[str, Any]]) -> None:
    from alm_pipeline.editing.card import difference_text

    rows = [
        {
            "measure": one_line(measure["name"]),
            "before": f"{measure['before']:.4f}",
            "after": f"{measure['after']:.4f}",
            "difference [95 %]": difference_text(measure["difference"]),
            "items": f"{measure['items']:,}",
        }
        for measure in measures
    ]
    create_table_artifact(rows, key="alm-edit", description=markdown(f"{folder}: before and after the edit"))
    for row in rows:
        get_run_logger().info("%s", ", ".join(f"{name}: {value}" for name, value in row.items()))


@inert_flow("ensemble", _ensemble_name)
def ensemble(
    members: list[MemberConfig],
    folder: str,
    mean: Mean = "probabilities",
    vocabulary: SharedTokens = "shared",
    corpus: str | None = None,
    text: str = "text",
    examples: Count = 200,
    tasks: list[str] | None = None,
    limit: Count | None = None,
) -> Results:
    """Combine models of different families into one, and measure it beside each of them.

    Args:
        members: The models and their weights. The first one leads: its tokenizer is used.
        folder: Where to write ensemble.yaml, which `alm generate` and `alm evaluate` load like a model.
        mean: Whether to average the members' probabilities or their log-probabilities.
        vocabulary: The tokens that all members have (shared), or the leader's, each with its nearest token of every
            other member (mined).
        corpus: URL of texts to measure bits per byte on.
        text: The column of the corpus that holds the text, or a template of columns: '{question} {answer}'.
        examples: The number of texts to take from the corpus.
        tasks: Names of lm_eval tasks.
        limit: The number of examples per task; by default all.
    """
    with inert_run():
        from alm_pipeline.comparison.corpora import named_corpora, require_texts
        from alm_pipeline.ensemble.loading import load_ensemble
        from alm_pipeline.ensemble.tasks import lm_eval_harness

        config = EnsembleConfig(members=tuple(members), mean=mean, vocabulary=vocabulary)
        if corpus:
            require_texts(named_corpora([corpus], text, examples))
        else:
            refuse_unread("no corpus is named", text=(text, "text"), examples=(examples, 200))
        if tasks:
            lm_eval_harness().check_tasks(tasks, None)
        else:
            refuse_unread("no tasks are named", limit=(limit, None))
        load_ensemble(config)  # raises what does not fit before anything is written
        file = _write_once(config, Path(folder))
        if not corpus and not tasks:
            return {}
        names = [str(file), *each_once(member.model for member in members)]
        trust = any(member.trust_remote_code for member in members)
        results: Results = evaluate(
            names, corpus, text, examples, tasks=tasks, limit=limit, dtype=members[0].dtype, trust_remote_code=trust
        )
        return results


def _write_once(config: EnsembleConfig, folder: Path) -> Path:
    """Write the ensemble's file, unless an earlier run has written the same."""
    if (folder / FILE).is_file() and read_config(folder / FILE) == config:
        return folder / FILE
    return write_config(config, folder)


@inert_flow("audit", _audit_name)
def audit(
    url: str,
    teacher: str | None = None,
    student: str | None = None,
    examples: Count = 16,
    tokens: Annotated[Whole, Field(ge=2)] = 256,
    seed: Annotated[Whole, Field(ge=0, lt=SEEDS)] = 0,
    tolerance: Annotated[Number, Field(ge=0, le=1)] = 1e-3,
    budget: Annotated[Whole, Field(ge=0)] = 1000,
    largest: Annotated[Whole, Field(ge=0)] = 10,
    dtype: Dtype = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure how far the targets of chunks are from their exact values, which do not depend on the tokenizer.

    Args:
        url: The folder of a finished student, of alignments or of teacher scores.
        teacher: The teacher, if it has moved since it scored.
        student: The student's model folder, if it is a copy elsewhere.
        examples: The number of examples to draw, in all.
        tokens: The tokens of each example that are looked at, from its beginning.
        seed: The seed that examples are drawn with.
        tolerance: The share of a sum that may be missing from it.
        budget: The sequences off the canonical path to follow, per example and side.
        largest: The number of largest cases to show per side.
        dtype: The dtype to compute in.
        device: cpu, cuda:1, …; by default the GPU, if there is one.
        trust_remote_code: Whether to run code in a model's folder, such as that of a byte-level student.
    """
    with inert_run():
        from alm_pipeline.audit.audit import AuditSettings, audit_targets
        from alm_pipeline.audit.numbers import audit_document
        from alm_pipeline.audit.sources import AuditSource

        log_stages_at_info()
        sources = AuditSource.open(url, teacher=teacher, student=student, trust_remote_code=trust_remote_code)
        settings = AuditSettings(examples, tokens, seed, tolerance, budget, dtype, device, largest)
        reports = audit_targets(sources, settings)
        _show_audit(reports)
        return audit_document(reports)


@inert_flow("tokenizers", _tokenizers_name)
def tokenizers(
    names: list[str],
    corpus: str | list[str],
    text: str = "text",
    examples: Count = 1000,
    by: str | None = None,
    model: str | None = None,
    folder: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Compare tokenizers on the same texts: lengths, vocabularies by bytes, aligned chunks, what a transfer costs.

    Args:
        names: Local folders, names on the Hub or demo:NAME; the others are compared with the first.
        corpus: URL of Parquet, Arrow, JSON, CSV or text files, or NAME=URL of several.
        text: The column of the corpus that holds the text, or a template of columns: '{question} {answer}'.
        examples: The number of texts to take from each corpus.
        by: Also count by the values of this column of the corpus, by `script` or by `file`.
        model: A model, to show what moving it to each tokenizer would change; its own is the first.
        folder: A new folder to write the tables to as Parquet files.
        trust_remote_code: Whether to run code in the model's folder.
    """
    with inert_run():
        from alm_pipeline.comparison.corpora import named_corpora
        from alm_pipeline.models.new_folder import require_new
        from alm_pipeline.tokenizer_report.files import write_tables
        from alm_pipeline.tokenizer_report.report import report_tokenizers

        log_stages_at_info()
        if folder:
            require_new(Path(folder))
        corpora = named_corpora([corpus] if isinstance(corpus, str) else corpus, text, examples)
        report = report_tokenizers(names, corpora, by, model=model, trust_remote_code=trust_remote_code)
        if folder:
            write_tables(report, Path(folder))
        tables = report.document()
        for name in ("lengths", "overlap", "chunks", "transfer", "left_out"):
            if rows := [{key: _cell(value) for key, value in row.items()} for row in tables[name]]:
                key = f"alm-tokenizers-{name.replace('_', '-')}"
                create_table_artifact(rows, key=key, description=markdown(f"{', '.join(names)}: {name}"))
        return tables


def _show_audit(reports: Sequence["AuditReport"]) -> None:
    title = markdown(f"{reports[0].url}: distance of targets from their exact values, nats")
    rows = [row for report in reports for row in _audit_table(report)]
    page = [part for report in reports for part in _audit_page(report)]
    create_table_artifact(rows, key="alm-audit", description=title)
    create_markdown_artifact("\n\n".join(page), key="alm-audit-report", description=title)


def _audit_table(report: "AuditReport") -> Iterator[dict[str, str]]:
    from alm_pipeline.audit.tables import number_tables

    source = {"source": one_line(report.source)} if report.source else {}
    for side, grouping, rows in number_tables(report):
        for row in rows:
            cells = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}
            yield {**source, "side": side, "by": grouping, **{name: one_line(value) for name, value in cells.items()}}


def _audit_page(report: "AuditReport") -> Iterator[str]:
    from alm_pipeline.audit.drawing import draw_audit
    from alm_pipeline.audit.numbers import LargestCase
    from alm_pipeline.audit.tables import remarks

    yield f"# {markdown(report.url)}" + (f": {markdown(report.source)}" if report.source else "")
    yield "\n".join(f"- {markdown(sentence)}" for sentence in remarks(report))
    try:
        yield f"![numbers](data:image/png;base64,{base64.b64encode(draw_audit(report)).decode()})"
    except UserError as error:  # without matplotlib
        yield markdown(error)
    yield f"## Largest distances with debias {report.debias}"
    yield "\n".join(
        f"- {case['side']}: off by {case['error']:+.3f} ({case['value']:.3f}, exact {case['exact']:.3f}): "
        f"{markdown_code(case['text'])}; teacher {markdown_code(case['teacher_tokens'])}, "
        f"student {markdown_code(case['student_tokens'])}"
        for case in map(LargestCase.row, report.largest)
    )
