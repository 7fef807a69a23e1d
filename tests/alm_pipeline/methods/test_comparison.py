"""A comparison of methods on tiny models: what it measures, shares and keeps."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alm_pipeline.config import AlmConfig
from alm_pipeline.ensemble import harness
from alm_pipeline.ensemble.harness import evaluate
from alm_pipeline.methods.comparison import MethodComparison
from alm_pipeline.methods.definitions import domain_at
from alm_pipeline.methods.report import ComparisonReport
from alm_pipeline.methods.tasks import ComparedTasks
from alm_pipeline.methods.units import BITS, KL, UnitStore, unit_table
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.runtime import output_files
from storage.errors import UserError
from storage.folders import FolderManifest
from tests.lm_eval_tasks import write_choices

METHODS = ("alm+sft", "sft", "untrained")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a multiple-choice task over local questions."""
    folder = tmp_path_factory.mktemp("tasks")
    write_choices(folder, "foxes", [(f"The quick brown fox {k}", (" jumps", " 12"), k % 2) for k in range(4)])
    return folder


@pytest.fixture(scope="module")
def compared(
    config: AlmConfig, corpus_url: str, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> MethodComparison:
    root = str(tmp_path_factory.mktemp("compared"))
    domains = [domain_at("other", corpus_url, 12)]
    return MethodComparison(config, root, METHODS, 2, domains, ComparedTasks(("foxes",), tasks))


@pytest.fixture(scope="module")
def report(compared: MethodComparison) -> ComparisonReport:
    return compared.run()


def value(report: ComparisonReport, domain: str, measure: str, method: str) -> float:
    (found,) = (one for one in report.measures if (one.domain, one.name) == (domain, measure))
    return found.values[method].value


def test_held_out_measures_are_those_of_the_students(compared: MethodComparison, report: ComparisonReport) -> None:
    for method in METHODS:
        results = [
            Pipeline(run.config, compared.root).student.manifest().results  # type: ignore[union-attr]
            for run in compared.runs
            if run.method == method
        ]
        for measure, name in {BITS: "held_out_bits_per_byte", KL: "held_out_word_kl"}.items():
            expected = np.mean([of_student[name]["student_after"] for of_student in results])
            assert value(report, "tiny", measure, method) == pytest.approx(expected, rel=1e-9)
    teacher = results[0]["held_out_bits_per_byte"]["teacher"]
    assert value(report, "tiny", BITS, "teacher") == pytest.approx(teacher, rel=1e-9)


def test_other_corpora_are_measured_as_a_whole(report: ComparisonReport) -> None:
    (bits,) = (one for one in report.measures if (one.domain, one.name) == ("other", BITS))
    assert bits.units == 12
    assert bits.values["untrained"].value == bits.values["original"].value  # a student that keeps its tokenizer
    assert set(bits.values) == {*METHODS, "original", "teacher"}


def test_tasks_are_kept_by_question(
    compared: MethodComparison, report: ComparisonReport, tasks: Path, llama_folder: str
) -> None:
    (alone,) = evaluate([llama_folder], ["foxes"], task_folder=tasks, dtype=compared.config.train.dtype)
    assert value(report, "foxes", "acc", "original") == alone["results"]["foxes"]["acc,none"]
    rows = [row for row in report.units().to_pylist() if row["domain"] == "foxes"]
    assert len(rows) == 4 * (2 * len(METHODS) + 1)


def test_the_teacher_scores_each_corpus_once(compared: MethodComparison, report: ComparisonReport) -> None:
    folders = {kind: len(list(Path(compared.root, kind).iterdir())) for kind in ("teacher_scores", "students")}
    assert folders == {"teacher_scores": 2, "students": 2 * len(METHODS)}


def test_the_folder_has_tables_numbers_and_pictures(compared: MethodComparison, report: ComparisonReport) -> None:
    folder = Path(compared.url)
    assert folder == Path(compared.root, "comparisons", "tiny")
    document = json.loads((folder / "comparison.json").read_text())
    assert document == report.document()
    assert [row["method"] for row in document["measures"]][:3] == list(METHODS)
    page = (folder / "comparison.md").read_text()
    assert "**tiny, held out: " in page
    assert "| untrained |" in page
    assert pq.read_table(folder / "units.parquet").equals(report.units())
    for name in ("quality.png", "measures.png"):
        with Image.open(io.BytesIO((folder / name).read_bytes())) as picture:
            assert picture.size[0] > 500


def test_no_picture_of_an_earlier_report_stays(
    compared: MethodComparison, report: ComparisonReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(compared, folder=str(tmp_path))
    other.write(report)
    monkeypatch.setattr(output_files, "find_spec", lambda _: None)
    other.write(report)
    assert {file.name for file in tmp_path.iterdir()} == {"comparison.json", "comparison.md", "units.parquet"}


def test_costs_are_of_those_that_were_trained(report: ComparisonReport) -> None:
    costs = report.document()["costs"]
    assert set(costs) == {"alm+sft", "sft"}
    assert all(number > 0 for cost in costs.values() for number in cost.values())


def test_nothing_is_made_again(
    compared: MethodComparison, report: ComparisonReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "cache", lambda _: pytest.fail("it makes caches again"))
    monkeypatch.setattr(harness, "simple_evaluate", lambda *_, **__: pytest.fail("it asks lm_eval again"))
    assert compared.run().document() == report.document()
    fewer = MethodComparison(compared.config, compared.root, ("sft",), 2, compared.domains, compared.tasks).run()
    assert value(fewer, "other", KL, "sft") == value(report, "other", KL, "sft")


def test_an_interrupted_comparison_goes_on(
    config: AlmConfig, corpus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(root: str) -> MethodComparison:
        return MethodComparison(config, str(tmp_path / root), ("alm", "sft"), 1, [domain_at("other", corpus_url, 6)])

    unbroken, broken = compare("unbroken"), compare("broken")
    report, train = unbroken.run(), Pipeline.train
    trained: list[str] = []

    def dies_at_the_second(self: Pipeline) -> FolderManifest:
        trained.append(str(self.config.name))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(self)

    monkeypatch.setattr(Pipeline, "train", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = compare("broken").run()
    assert again.units().equals(report.units())
    assert Path(broken.url, "units.parquet").read_bytes() == Path(unbroken.url, "units.parquet").read_bytes()


@pytest.mark.bad_input
def test_two_domains_of_one_name_are_refused(config: AlmConfig, corpus_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="domains: tiny is the name of two corpora"):
        MethodComparison(config, str(tmp_path), ("alm",), 1, [domain_at("tiny", corpus_url, 5)])


@pytest.mark.bad_input
def test_a_damaged_measurement_is_named(tmp_path: Path) -> None:
    store, table = UnitStore(str(tmp_path)), unit_table("d", "m", {"u": (1.0, 2.0)})
    assert store.of({"model": "m"}, lambda: table).equals(table)
    (file,) = (tmp_path / "units").iterdir()
    file.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match=f"{file.name}: is not a measurement.*delete it"):
        store.of({"model": "m"}, lambda: table)
