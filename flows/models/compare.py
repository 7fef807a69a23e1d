"""The flow `compare`: students of several methods on the same caches, and what they are worth side by side.

Each student is a run of the flow `alm`. With a GPU pool the students are trained and measured there, several at a time.
A comparison that was interrupted is simply run again: what is finished is answered from the store.
"""

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import Field

from alm_pipeline.config import AlmConfig, Whole
from alm_pipeline.config.fields.places import PlaceUrl, with_absolute_places
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.config.frozen import Frozen
from alm_pipeline.preflight.phases import ALL_PHASES
from alm_pipeline.recipes.overrides import configure, override, parse_overrides
from flows.alm import alm
from flows.execution.gpu_pool import GpuPool
from flows.execution.inert_run import inert_flow, inert_run, require_no_secrets
from flows.run_name import run_name
from flows.stages import POOL_DEPLOYMENTS
from flows.storage_block import storage_root
from flows.tasks import gpu_slots, log_stages_at_info
from storage.errors import UserError
from storage.printed.inert import markdown, one_line
from storage.urls import absolute_url

if TYPE_CHECKING:
    from alm_pipeline.methods.comparison import MethodComparison
    from alm_pipeline.methods.report import ComparisonReport

Count = Annotated[Whole, Field(ge=1)]
MEASURE = "measure/measure"
"""the deployment that measures one student on a GPU pool"""


class ComparisonRequest(Frozen):
    """A comparison as the parameters of a flow."""

    config: AlmConfig
    storage: str
    methods: tuple[str, ...]
    seeds: int = 3
    domains: dict[str, PlaceUrl] = Field(default_factory=dict)
    """URLs by name"""
    examples: int = 200
    definitions: dict[str, Any] | None = None
    tasks: tuple[str, ...] = ()
    task_folder: PlaceUrl | None = None
    few_shot: int | None = None
    limit: int | None = None
    chat: bool = False
    folder: str | None = None

    def comparison(self) -> "MethodComparison":
        """Raises UserError with what is wrong."""
        from alm_pipeline.methods.comparison import MethodComparison
        from alm_pipeline.methods.definitions import Definitions, domain_at
        from alm_pipeline.methods.tasks import ComparedTasks

        if not self.tasks:
            of_tasks = {"task_folder": None, "few_shot": None, "limit": None, "chat": False}
            refuse_unread("no tasks are named", **{name: (getattr(self, name), no) for name, no in of_tasks.items()})
        if not self.domains:
            refuse_unread("no domains are named by URL", examples=(self.examples, 200))
        own = Definitions.parse(self.definitions, "definitions") if self.definitions is not None else Definitions()
        folder = Path(self.task_folder) if self.task_folder else None
        domains = [domain_at(name, url, self.examples) for name, url in self.domains.items()]
        return MethodComparison(
            self.config,
            storage_root(self.storage),
            self.methods,
            self.seeds,
            (*domains, *own.domains),
            ComparedTasks(self.tasks, folder, self.few_shot, self.limit, self.chat) if self.tasks else None,
            own.methods,
            self.folder,
        )

    def from_anywhere(self) -> "ComparisonRequest":
        """Return the same comparison with absolute paths, for runs in other folders."""
        found = with_absolute_places(self)
        if self.definitions is None:
            return found
        from alm_pipeline.methods.definitions import with_absolute_definitions

        return found.model_copy(update={"definitions": with_absolute_definitions(self.definitions)})


_compare_name = run_name("compare", lambda parameters: f"compare {', '.join(parameters['methods'])}")
_measure_name = run_name("measure", lambda parameters: f"measure student {parameters['student']}")


@inert_flow("compare", _compare_name)
def compare(
    methods: list[str],
    recipe: str = "transfer",
    config: AlmConfig | None = None,
    storage: str = "alm-data",
    seeds: Count = 3,
    domains: dict[str, str] | None = None,
    examples: Count = 200,
    definitions: dict[str, Any] | None = None,
    tasks: list[str] | None = None,
    task_folder: str | None = None,
    few_shot: Annotated[Whole, Field(ge=0)] | None = None,
    limit: Count | None = None,
    chat: bool = False,
    folder: str | None = None,
    settings: dict[str, Any] | None = None,
    gpu_pool: str | None = None,
    gpu_runs: Count = 1,
) -> dict[str, Any]:
    """Train students by several methods on the same caches, and measure them side by side.

    Args:
        methods: Built-in methods (alm, alm+sft, sft, uld, mined, dskd, untrained, …) or those of `definitions`. The
            first one is what the others are compared with.
        recipe: The name of a recipe (distill, draft, transfer, published, maths, bytes), where `config` is not set.
        config: A complete configuration. A method replaces its objective.
        storage: Where datasets and students are stored: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME.
        seeds: The number of students per method.
        domains: URLs of texts to measure on, by name, beside what the corpus itself holds out.
        examples: The number of documents to take from each of these.
        definitions: Methods and domains of your own: {"methods": {NAME: {FIELD: VALUE}}, "domains": {NAME: CORPUS}}.
        tasks: Names of lm_eval tasks.
        task_folder: A folder with your own YAML tasks.
        few_shot: The number of examples in the tasks' prompts; by default the task's own.
        limit: The number of examples per task; by default all.
        chat: Whether to put the tasks' prompts into the tokenizer's chat template.
        folder: URL of a folder for the results; by default comparisons/NAME under the storage root.
        settings: Any fields of the configuration, by dotted name: {"train.steps": 100}.
        gpu_pool: The work pool that runs alm/score, alm/train and measure/measure; by default this run does all.
        gpu_runs: The number of runs on the GPU pool at a time.
    """
    parameters = dict(locals())
    with inert_run():
        overrides = parse_overrides({"settings": settings})
        chosen = override(config, overrides) if config else configure(recipe, overrides)
        fields = {name: parameters[name] for name in ComparisonRequest.model_fields if name in parameters}
        request = ComparisonRequest.model_validate(
            {**fields, "config": chosen, "domains": domains or {}, "tasks": tasks or ()}
        )
        if gpu_pool:
            request = request.from_anywhere()
        comparison = request.comparison()
        log_stages_at_info()
        comparison.require_ready(here=("prepare",) if gpu_pool else ALL_PHASES)
        if gpu_pool:
            _make_on_pool(comparison, request, gpu_pool, gpu_runs)
        else:
            _make_here(comparison, storage)
        report = comparison.report()
        comparison.write(report)
        _show(report, comparison.url)
        return {"folder": comparison.url, **report.document()}


def _make_here(comparison: "MethodComparison", storage: str) -> None:
    for run in comparison.runs:
        alm(config=run.config, storage=storage)
        comparison.measure(run.config)


def _make_on_pool(comparison: "MethodComparison", request: ComparisonRequest, gpu_pool: str, gpu_runs: int) -> None:
    storage = request.storage
    if storage_root(storage) == storage:  # runs in other folders have to find the same place
        storage = absolute_url(storage)
    places = {"storage": storage, "folder": absolute_url(comparison.url)}
    everywhere = request.model_copy(update=places).model_dump(mode="json")
    require_no_secrets(everywhere, f"gpu_pool {gpu_pool}")
    with GpuPool(gpu_pool, gpu_runs) as pool:
        for deployment in (*POOL_DEPLOYMENTS.values(), MEASURE):
            pool.check(deployment)
        for run in comparison.runs:  # where the caches are there already, this answers at once
            alm(config=run.config, storage=request.storage, until="scores", gpu_pool=gpu_pool, gpu_runs=gpu_runs)
        trained = [
            pool.submit(
                POOL_DEPLOYMENTS["train"],
                {"config": run.config.model_dump(mode="json"), "storage": storage, "only": "train"},
            )
            for run in comparison.runs
        ]
        _wait(trained)
        _wait([pool.submit(MEASURE, {"request": everywhere, "student": k}) for k in range(len(comparison.runs))])


def _wait(runs: Sequence["Future[float]"]) -> None:
    for run in runs:
        run.result()


@inert_flow("measure", _measure_name)
def measure(request: ComparisonRequest, student: Whole) -> str:
    """Measure one finished student of a comparison. Returns the URL of the comparison's folder.

    Args:
        request: The comparison that the student belongs to.
        student: The student's number, from 0: seed after seed, and of each the methods in their order.
    """
    with inert_run():
        comparison = request.comparison()
        if not 0 <= student < len(comparison.runs):
            raise UserError(f"student: {student} is not one of the {len(comparison.runs)} students, counted from 0")
        log_stages_at_info()
        with gpu_slots():
            comparison.measure(comparison.runs[student].config)
        return comparison.url


def _show(report: "ComparisonReport", url: str) -> None:
    create_table_artifact(_rows(report), key="alm-comparison", description=f"Methods side by side: {markdown(url)}")
    create_markdown_artifact("\n\n".join(_page(report, url)), key="alm-comparison-report")
    get_run_logger().info("%s: comparison.md, comparison.json, units.parquet and pictures", url)


def _rows(report: "ComparisonReport") -> list[dict[str, str]]:
    document: Mapping[str, Any] = report.document()
    return [
        {name: f"{value:.4f}" if isinstance(value, float) else one_line(value) for name, value in row.items()}
        for row in document["measures"]
    ]


def _page(report: "ComparisonReport", url: str) -> list[str]:
    from alm_pipeline.methods.pictures import draw_measures, draw_quality
    from alm_pipeline.methods.tables import markdown_page

    parts = [f"# {markdown(url)}", markdown_page(report.document())]
    try:
        pictures = [draw_quality(report), draw_measures(report)]
    except UserError as error:  # without matplotlib
        return [*parts, markdown(error)]
    return [*parts, *(f"![picture](data:image/png;base64,{base64.b64encode(png).decode()})" for png in pictures)]
