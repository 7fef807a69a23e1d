"""The page about students: what it says agrees with the store, and nothing in the store can run or be fetched."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alm_pipeline.calibration.report.measures import ScoredChoices, reliability
from alm_pipeline.calibration.report.output import SHOWN
from alm_pipeline.calibration.report.output import write_report as write_calibration
from alm_pipeline.calibration.report.points import CalibrationReport, Point, Role, make_report
from alm_pipeline.config import AlmConfig
from alm_pipeline.inspection.summary import coverage
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.student_report import page as pages
from alm_pipeline.student_report.page import SECTIONS, report_page, write_report
from storage.dataset import open_dataset
from storage.errors import UserError
from storage.urls import remove
from tests.corpora import write_chats
from tests.flows.cli.hostile import NAME, write_store

RAW = re.compile("[^\n\t -~\xa0-\U0010ffff]|[\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f]")
VOID = {"meta", "br", "line", "circle", "link", "img", "input"}
FETCHING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "ping"}


class _Page(HTMLParser):
    """Elements with their attributes, the text below each heading, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory, config: AlmConfig) -> list[Pipeline]:
    """Two students of one store, which differ in their steps."""
    root = str(tmp_path_factory.mktemp("report"))
    runs = [
        Pipeline(config, root),
        Pipeline(config.model_copy(update={"train": config.train.model_copy(update={"steps": 4})}), root),
    ]
    for run in runs:
        run.run()
    return runs


@pytest.fixture(scope="module")
def urls(students: list[Pipeline]) -> list[str]:
    return [run.student.url for run in students]


def test_the_page_says_what_the_store_holds(students: list[Pipeline], urls: list[str]) -> None:
    page = _Page(report_page(urls[:1]))
    assert page.open == []
    run = students[0]
    manifest = run.student.manifest()
    assert manifest
    results, counts = manifest.results, {name: data.complete_manifest().counts for name, data in run.caches.items()}
    bits, error = results["held_out_bits_per_byte"], results["held_out_standard_errors"]["student_after"]
    assert f"{bits['student_before']:.4f}" in page.text
    after = bits["student_after"]
    assert f"after training {after:.4f} {after - 1.96 * error:.4f} to {after + 1.96 * error:.4f}" in page.text
    for amount in (
        f"{run.examples.complete_manifest().rows:,}",
        f"{counts['teacher_tokens']['tokens']:,}",
        f"{counts['student_tokens']['tokens']:,}",
        f"{counts['alignments']['chunks']:,}",
    ):
        assert f" {amount} " in page.text
    for dataset in run.caches.values():
        assert f"{dataset.kind}/{dataset.name}" in page.text
    assert manifest.name in page.text
    for section in SECTIONS:
        shown = any(attributes.get("id") == section.name for attributes in page.all("h2"))
        assert shown == (section.name not in ("calibration", "rounds")), section.name


def test_what_was_dropped_is_counted_by_reason(tmp_path: Path, config: AlmConfig) -> None:
    rows = [{"text": f"A text about number {k} and its neighbors. " * 3} for k in range(30)]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, {"text": ""}, {"text": ""}, {"text": 7}])))
    corpus = config.corpus.model_copy(update={"source": config.corpus.source.model_copy(update={"urls": (str(file),)})})
    run = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path / "store"))
    run.run()
    dropped = run.examples.complete_manifest().dropped
    assert dropped
    text = _Page(report_page([run.student.url])).text
    for reason, count in dropped.items():
        assert re.search(rf"{re.escape(reason)} .*?\b{count}\b", text)


def test_several_students_are_side_by_side(students: list[Pipeline], urls: list[str]) -> None:
    text = report_page([*urls, urls[0]])  # one that is named twice is shown once
    page = _Page(text)
    assert "2 students" in page.text
    assert "train.steps 6 4" in page.text
    for name in ("steps=6", "steps=4"):
        assert f"{name}: after training" in page.text
    shared = open_dataset(students[0].examples.url).name
    assert page.text.count(f"examples/{shared}") == 4  # below each side's tokens
    assert page.text.count("of the bytes aligned") == 1  # their data flow is the same
    data = json.loads(re.search(r'id="chart-data">(.*?)</script>', text)[1])  # type: ignore[index]
    (loss,) = [chart for chart in data if chart["title"] == "Loss"]
    assert [series["name"] for series in loss["series"]] == ["steps=6", "steps=4"]
    assert [series["x"][-1] for series in loss["series"]] == [6, 4]


def test_samples_are_side_by_side_with_the_teacher(urls: list[str]) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(f"{urls[0]}/samples.parquet").to_pylist()
    page = _Page(report_page(urls[:1], teacher=lambda _, prompt: f"TEACHER after {len(prompt)} characters"))
    before, after = rows[0], rows[-1]
    assert before["prompt"] == after["prompt"]
    assert [heading for heading in ("teacher", "before", "after") if f" {heading} " in page.text] == [
        "teacher",
        "before",
        "after",
    ]
    assert f"TEACHER after {len(before['prompt'])} characters" in page.text


def calibration_of(names: Sequence[str], folder: Path, role: Role = "model") -> CalibrationReport:
    """Write what `alm calibrate` writes about models with random scores of 400 questions."""
    import numpy as np

    random = np.random.default_rng(0)
    ones = np.ones((400, 3), np.int64)
    weights = np.linspace(0, 1, len(names)).tolist() if role == "merge" else [None] * len(names)
    roles: list[Role] = ["base", *["merge"] * (len(names) - 2), "tuned"] if role == "merge" else [role] * len(names)  # type: ignore[list-item]
    points = [
        Point(name, each, weight, ScoredChoices(random.normal(0, 2, (400, 3)), ones, ones, random.integers(0, 3, 400)))
        for name, each, weight in zip(names, roles, weights, strict=True)
    ]
    report = make_report(points, np.arange(400))
    write_calibration(report, "sum", "questions: models", str(folder))
    return report


def test_calibration_is_shown_as_it_was_measured(urls: list[str], tmp_path: Path) -> None:
    report = calibration_of(["teacher", f"student {NAME}"], tmp_path)
    text = report_page(urls[:1], calibration=[str(tmp_path)])
    page = _Page(text)
    assert page.open == []
    assert RAW.findall(text.replace("\u200d", "")) == []
    for point in report.measures["sum", "all"]:
        for measure in SHOWN:
            found = point.estimates[measure]
            assert f"{found.value:.3f} {found.low:.3f} to {found.high:.3f}" in page.text
        for bin_ in reliability(point.predictions.correct, point.predictions.confidence):
            sentence = f"confidence {bin_.confidence:.2f}: {bin_.accuracy:.0%} of {bin_.questions:,} right"
            assert (sentence in page.text) == (bin_.questions > 0)
    assert "400 questions, reading sum" in page.text


def test_of_a_sweep_the_verdict_is_shown(urls: list[str], tmp_path: Path) -> None:
    report = calibration_of(["base", "middle", "tuned"], tmp_path, "merge")
    page = _Page(report_page(urls[:1], calibration=[str(tmp_path)]))
    assert next(verdict.sentence for verdict in report.verdicts if verdict.reading == "sum") in page.text
    assert "the test half, 200 questions" in page.text
    assert "λ = 0.5" in page.text


def test_other_folders_have_no_calibration(urls: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no calibration.json: name the folder of `alm calibrate"):
        report_page(urls[:1], calibration=[str(tmp_path)])
    calibration_of(["one"], tmp_path)
    document = tmp_path / "calibration.json"
    whole = json.loads(document.read_text())
    for name in ("title", "models", "reliability"):
        document.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(UserError, match=rf"calibration.json: is damaged \({name}: "):
            report_page(urls[:1], calibration=[str(tmp_path)])
    document.write_text(document.read_text()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        report_page(urls[:1], calibration=[str(tmp_path)])


def test_a_teacher_is_not_asked_for_conversations(tmp_path: Path, config: AlmConfig) -> None:
    file = write_chats(tmp_path / "chats.jsonl")
    source = config.corpus.source.model_copy(update={"urls": (file,)})
    student = config.student.model_copy(update={"template": "chatml"})
    changes = {"corpus": config.corpus.model_copy(update={"source": source}), "teacher_template": "chatml"}
    run = Pipeline(config.model_copy(update={**changes, "student": student}), str(tmp_path / "store"))
    run.run()
    assert "<|im_start|>" in _Page(report_page([run.student.url])).text
    with pytest.raises(UserError, match="leave --teacher out"):
        report_page([run.student.url], teacher=lambda *_: "")


def test_coverage_of_the_first_examples_is_that_of_a_smaller_dataset(students: list[Pipeline]) -> None:
    url = students[0].alignments.url
    whole = coverage(url)
    assert coverage(url, 10**9).equals(whole)
    size = int(whole["bytes"][0])
    for most in (1, size // 3, size - 1):
        part = coverage(url, most)
        assert 0 < part["bytes"][0] < size
        assert part["bytes"][0] <= most + 200
        assert (part["aligned_bytes"] <= whole["aligned_bytes"]).all()


def test_no_text_of_the_store_can_run_or_be_fetched(tmp_path: Path, config: AlmConfig) -> None:
    pipeline = write_store(tmp_path, config.model_copy(update={"name": f"</script><script>alert(1)</script>{NAME}"}))
    place = write_report(pipeline.student.url)
    text = Path(place).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert RAW.findall(text.replace("\u200d", "")) == []
    assert list(page.all("script")) == [{"type": "application/json", "id": "chart-data"}, {}, {}]
    assert {tag for tag, _ in page.elements} & {"img", "iframe", "object", "embed", "link", "base", "form"} == set()
    for tag, attributes in page.elements:
        assert not FETCHING & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#"), tag  # type: ignore[union-attr]
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy.partition("script-src")[2]
    assert "alert(1)" in page.text  # as text


def test_the_page_is_small_and_runs_what_its_policy_names(urls: list[str]) -> None:
    import base64
    import hashlib

    text = report_page(urls)
    assert len(text.encode()) < 300_000
    for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in text
    assert "Permission is hereby granted, free of charge" in text


def test_a_report_needs_only_what_is_still_stored(tmp_path: Path, config: AlmConfig) -> None:
    run = Pipeline(config, str(tmp_path))
    run.run()
    for url in (run.alignments.url, run.examples.url, f"{run.student.url}/samples.parquet"):
        remove(url)
    text = _Page(report_page([run.student.url])).text
    assert "no longer stored" in text
    assert f"{run.tokens('teacher').complete_manifest().counts['tokens']:,}" in text
    assert not any(content for content in text.split() if content == "Samples")


@pytest.mark.parametrize("url", ["nothing/here", "examples"])
def test_other_folders_are_refused(url: str, students: list[Pipeline], tmp_path: Path) -> None:
    place = students[0].examples.url if url == "examples" else f"{tmp_path}/students/x"
    with pytest.raises(UserError, match="is not the folder of a finished student"):
        report_page([place])


def test_long_curves_are_thinned() -> None:
    import numpy as np

    from alm_pipeline.student_report.charts import _fewer

    steps, values = np.arange(1.0, 10_001), np.arange(10_000.0)
    few_steps, few = _fewer(steps, values, 300)
    assert len(few) <= 300
    assert few_steps[-1] == 10_000
    assert few.mean() == pytest.approx(values.mean(), rel=0.01)
    assert few[0] == pytest.approx(values[: int(few_steps[0])].mean())


def test_a_run_writes_its_report(students: list[Pipeline], urls: list[str]) -> None:
    written = Path(urls[0], "runs", "report.html")
    assert written.read_text(encoding="utf-8") == report_page(urls[:1])
    manifest = students[0].student.manifest()
    assert manifest
    assert "report.html" not in manifest.files
    written.unlink()
    students[0].train()  # is finished, and lacks its report
    assert written.is_file()


def test_a_report_that_fails_does_not_fail_the_run(
    students: list[Pipeline], urls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path(urls[1], "runs", "report.html").unlink()
    broken = replace(SECTIONS[0], content=lambda students: 1 / 0)
    monkeypatch.setattr(pages, "SECTIONS", (broken,))
    assert students[1].train()
    assert "the report can't be written" in caplog.text


def test_without_polars_the_page_says_so(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine of a GPU pool, which needs none to train."""
    monkeypatch.setitem(sys.modules, "polars", None)
    for name in ("summary", "frame", "tables"):
        monkeypatch.delitem(sys.modules, f"alm_pipeline.inspection.{name}", raising=False)
    text = _Page(report_page(urls[:1])).text
    assert "polars" in text
    assert "Training" in text
