"""Mixtures: sources share no dataset, each is as it would be alone, and only the student knows their weights."""

import gc
import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alm_pipeline.audit.audit import AuditSettings, audit_targets
from alm_pipeline.audit.numbers import audit_document
from alm_pipeline.audit.sources import AuditSource
from alm_pipeline.config import AlmConfig, FilesSource, ObjectiveConfig, SourceConfig, TrainedTokenizer, parse_config
from alm_pipeline.methods.comparison import MethodComparison
from alm_pipeline.methods.definitions import domain_at
from alm_pipeline.methods.units import BITS, KL
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.estimate import make_plan
from alm_pipeline.planning.finished import find_finished, record_finished
from alm_pipeline.planning.plan import Amount
from alm_pipeline.repair import repair
from alm_pipeline.report import summarize, summary_rows
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.student_report.page import report_page, stored_report
from storage.errors import UserError
from storage.upkeep.catalog import Catalog
from storage.urls import read_bytes
from tests.alm_pipeline.training.loop.test_checkpoints import files_of

Sources = tuple[SourceConfig, ...]
ROLES = ("examples", "teacher_tokens", "student_tokens", "alignments", "scores")


def source(config: AlmConfig, name: str, folder: Path, count: int = 40, **settings: Any) -> SourceConfig:
    """Return a source of texts of its own, cut as the configuration's corpus is."""
    file = folder / f"{name}.jsonl"
    rows = [
        json.dumps({"text": f"{name}: the answer to question {k} is {k * 3} apples, of {k}."}) for k in range(count)
    ]
    file.write_text("\n".join(rows))
    own = {"name": name, "source": FilesSource(urls=(str(file),)), **settings}
    return SourceConfig.model_validate({**config.texts.model_dump(), **own})


@pytest.fixture
def sources(config: AlmConfig, llama_folder: str, tmp_path: Path) -> Sources:
    """Three sources, of which the second has a teacher of its own with another tokenizer."""
    return (
        source(config, "maths", tmp_path, count=24, weight=3),
        source(config, "code", tmp_path, weight=1, teacher=llama_folder),
        source(config, "prose", tmp_path, count=60, weight=0.5),
    )


def mixture(config: AlmConfig, sources: Sources, **update: Any) -> AlmConfig:
    return config.model_copy(update={"corpus": sources, **update})


def names(pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """Return the name of every dataset, by source and role."""
    return {part.name: {role: dataset.name for role, dataset in part.caches.items()} for part in pipeline.parts}


def test_a_source_has_the_datasets_that_it_has_alone(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    found = names(Pipeline(mixture(config, sources), str(tmp_path)))
    for each in sources:
        alone = config.model_copy(update={"corpus": each.plain, "teacher": each.teacher or config.teacher})
        caches = Pipeline(alone, str(tmp_path)).caches
        assert found[each.name] == {role: dataset.name for role, dataset in caches.items()}


def test_adding_a_source_or_another_weight_changes_only_the_student(
    config: AlmConfig, sources: Sources, tmp_path: Path
) -> None:
    whole = Pipeline(mixture(config, sources), str(tmp_path))
    without = Pipeline(mixture(config, sources[:2]), str(tmp_path))
    heavier = (sources[0].model_copy(update={"weight": 4.0}), *sources[1:])
    weighted = Pipeline(mixture(config, heavier), str(tmp_path))
    assert names(without) == {name: datasets for name, datasets in names(whole).items() if name != "prose"}
    assert names(weighted) == names(whole)
    assert len({pipeline.student.name for pipeline in (whole, without, weighted)}) == 3


def test_only_the_ratios_of_weights_are_in_the_students_name(
    config: AlmConfig, sources: Sources, tmp_path: Path
) -> None:
    doubled = tuple(each.model_copy(update={"weight": 2 * each.weight}) for each in sources)
    one, other = (Pipeline(mixture(config, each), str(tmp_path)).student.name for each in (sources, doubled))
    assert one == other


def test_a_mixture_of_many_sources_has_a_short_name(config: AlmConfig, tmp_path: Path) -> None:
    many = tuple(source(config, f"source-of-texts-{number}", tmp_path) for number in range(40))
    assert mixture(config, many).corpus_name == "source-of-texts-0+39-others"
    assert mixture(config, many[:2]).corpus_name == "source-of-texts-0+source-of-texts-1"


def test_a_list_of_one_source_has_the_datasets_of_the_corpus(config: AlmConfig, tmp_path: Path) -> None:
    (part,) = config.parts
    assert part is config
    only = SourceConfig.model_validate(config.texts.model_dump())
    found = Pipeline(mixture(config, (only,)), str(tmp_path)).parts[0].caches
    alone = Pipeline(config, str(tmp_path)).caches
    assert {role: each.name for role, each in found.items()} == {role: each.name for role, each in alone.items()}


def test_a_mixture_runs_to_a_student_with_results_by_source(
    config: AlmConfig, sources: Sources, tmp_path: Path
) -> None:
    pipeline = Pipeline(mixture(config, sources), str(tmp_path))
    results: Any = pipeline.run().results
    by_source = results["sources"]
    assert set(by_source) == {"maths", "code", "prose"}
    shares = {name: each["share"] for name, each in by_source.items()}
    assert shares == pytest.approx({"maths": 3 / 4.5, "code": 1 / 4.5, "prose": 0.5 / 4.5})
    read = sum(each["examples"] for each in by_source.values())
    assert all(abs(each["examples"] - shares[name] * read) < 1 for name, each in by_source.items())
    assert by_source["maths"]["epochs"] > 1
    assert by_source["code"]["teacher"] != by_source["maths"]["teacher"]
    for of in ("teacher", "student_before", "student_after"):
        mean = sum(shares[name] * each["bits_per_byte"][of] for name, each in by_source.items())
        assert results["held_out_bits_per_byte"][of] == pytest.approx(mean)
    kl = sum(shares[name] * each["word_kl"]["student_after"] for name, each in by_source.items())
    assert results["held_out_word_kl"]["student_after"] == pytest.approx(kl)
    check_files(pipeline, shares)
    summary = summarize(pipeline)
    assert [each.name for each in summary.sources] == ["maths", "code", "prose"]
    assert summary.examples == sum(each.examples for each in summary.sources)
    assert dict(summary_rows(summary, {}))["source code"].startswith("22.22% of the training, teacher tiny-llama")
    card = (pipeline.student.path / "README.md").read_text()
    assert "| code | `tiny-llama` | 22.2%" in card
    assert "the teachers `tiny-gemma` and `tiny-llama`" in card


def check_files(pipeline: Pipeline, shares: dict[str, float]) -> None:
    """The logs by source add up to those of the whole."""
    tables = {
        name: pq.read_table(pipeline.student.path / f"{name}.parquet").to_pylist()
        for name in ("metrics", "metrics_by_source", "evaluations", "evaluations_by_source")
    }
    for row in tables["metrics"]:
        own = [other for other in tables["metrics_by_source"] if other["step"] == row["step"]]
        assert {other["source"] for other in own} == set(shares)
        for count in ("tokens", "chunks"):
            assert sum(other[count] for other in own) == row[count]
        kl = sum(other["kl"] * other["chunks"] for other in own if other["chunks"])
        assert kl / row["chunks"] == pytest.approx(row["kl"], rel=1e-4)
    for row in tables["evaluations"]:
        own = [other for other in tables["evaluations_by_source"] if other["step"] == row["step"]]
        mean = sum(shares[other["source"]] * other["bits_per_byte"] for other in own)
        assert row["bits_per_byte"] == pytest.approx(mean)
        assert row["examples"] == sum(other["examples"] for other in own)


def test_an_interrupted_training_of_a_mixture_gives_the_same_student(
    config: AlmConfig, sources: Sources, tmp_path: Path
) -> None:
    """Stopped after its second checkpoint and resumed, every file of the student is the same to the byte."""
    from alm_pipeline.training.loop.trainer import AlmTrainer

    roots = [tmp_path / name for name in ("unbroken", "resumed")]
    Pipeline(mixture(config, sources), str(roots[0])).run()
    shutil.copytree(roots[0], roots[1], ignore=shutil.ignore_patterns("students"))
    save, saved = AlmTrainer._save_checkpoint, 0

    def interrupt(trainer: AlmTrainer, model: Any, trial: Any) -> None:
        nonlocal saved
        save(trainer, model, trial)
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlmTrainer, "_save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Pipeline(mixture(config, sources), str(roots[1])).run()
    Pipeline(mixture(config, sources), str(roots[1])).run()
    whole, resumed = (files_of(Pipeline(mixture(config, sources), str(root)).student.path) for root in roots)
    assert "metrics_by_source.parquet" in whole
    assert whole == resumed


def test_a_tokenizer_is_trained_on_all_sources(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    """An added source makes another tokenizer, and so another student's side; the teachers' scores stay."""
    student = config.student.model_copy(update={"tokenizer": TrainedTokenizer(vocab_size=300)})
    found = []
    for chosen in (sources[:2], sources):
        pipeline = Pipeline(mixture(config, chosen, student=student), str(tmp_path))
        pipeline.train_tokenizer()
        found.append((pipeline.parts[0].tokens("student").name, pipeline.parts[0].scores.name))
        assert all(part.student_tokenizer is pipeline.student_tokenizer for part in pipeline.parts)
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


def test_a_term_that_needs_the_teacher_in_memory_takes_one_teacher(config: AlmConfig, sources: Sources) -> None:
    content = mixture(config, sources, objective=ObjectiveConfig(terms={"latents": 1.0})).model_dump(mode="json")
    with pytest.raises(UserError, match="latents needs the teacher in memory during training, and corpus"):
        parse_config(content)
    content["corpus"] = [{**each, "teacher": None} for each in content["corpus"]]
    assert parse_config(content).teachers == (config.teacher,)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda listed: [listed[0], listed[0]], "two sources are called maths; give each a name of its own"),
        (lambda listed: [], "is a list without a source"),
        (lambda listed: [{**listed[0], "weight": 0}], r"corpus\.0\.weight: Input should be greater than 0"),
        (lambda listed: [{**listed[0], "weight": 0.1234567}], "has more than 6 decimals; round it"),
        (lambda listed: [{**listed[0], "wieght": 2}], r"corpus\.0\.wieght: no such setting; did you mean"),
        (lambda listed: listed[0], r"corpus\.weight: no such setting"),
    ],
)
def test_a_wrong_list_is_refused(config: AlmConfig, sources: Sources, change: Any, problem: str) -> None:
    content = mixture(config, sources).model_dump(mode="json")
    content["corpus"] = change(content["corpus"])
    with pytest.raises(UserError, match=problem):
        parse_config(content)


def test_the_preflight_names_the_source(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    wrong = sources[1].model_copy(update={"text": "no_such_column"})
    findings = Pipeline(mixture(config, (sources[0], wrong)), str(tmp_path)).preflight()
    errors = [found for found in findings if found.severity == "error"]
    assert {found.field for found in errors} == {"corpus.code.text"}


def test_a_plan_adds_up_its_sources_and_then_knows_what_is_there(
    config: AlmConfig, sources: Sources, tmp_path: Path
) -> None:
    pipeline = Pipeline(mixture(config, sources), str(tmp_path))
    before = make_plan(pipeline)
    assert [stage.state for stage in before.stages] == ["missing"] * 6
    for part in pipeline.parts[:2]:
        part.cache()
    partly = {stage.stage: stage.state for stage in make_plan(Pipeline(pipeline.config, str(tmp_path))).stages}
    assert partly == {**dict.fromkeys(partly, "partly"), "train": "missing"}
    pipeline.run()
    after = make_plan(Pipeline(pipeline.config, str(tmp_path)))
    assert {stage.state for stage in after.stages} == {"complete"}
    summary = summarize(pipeline)
    assert (after.examples, after.teacher_tokens) == (
        Amount.known(summary.examples),
        Amount.known(summary.teacher_tokens),
    )
    assert before.teacher_tokens
    assert before.teacher_tokens.value == pytest.approx(summary.teacher_tokens, rel=0.2)


def test_a_source_is_repaired_and_the_student_too(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    """Also where the sources have trained the student's tokenizer together: then the mixture is recorded."""
    student = config.student.model_copy(update={"tokenizer": TrainedTokenizer(vocab_size=300)})
    pipeline = Pipeline(mixture(config, sources, student=student), str(tmp_path))
    pipeline.run()
    part, kept = pipeline.parts[1], files_of(pipeline.student.path)
    damaged = [f"{part.tokens('student').url}/shard-00000.parquet", f"{part.scores.url}/shard-00000.parquet"]
    contents = [Path(file).read_bytes() for file in damaged]
    for file in (*damaged, f"{pipeline.student.url}/model.safetensors"):
        Path(file).write_bytes(b"damaged")
    catalog = Catalog.open(str(tmp_path))
    repairs = list(repair(catalog, list(catalog.entries)))
    assert [(each.refused, each.remaining) for each in repairs] == [("", ())] * 3
    assert [Path(file).read_bytes() for file in damaged] == contents
    again = files_of(pipeline.student.path)
    assert {name for name in kept if kept[name] != again[name]} <= {"manifest.json"}


def test_a_students_origins_are_those_of_all_sources(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    """So that `alm prune` keeps them, and `alm lineage` shows them."""
    pipeline = Pipeline(mixture(config, sources), str(tmp_path))
    pipeline.run()
    reached = Catalog.open(str(tmp_path)).origins([f"students/{pipeline.student.name}"])
    expected = {f"{each.kind}/{each.name}" for part in pipeline.parts for each in part.caches.values()}
    assert reached >= expected


def test_a_mixtures_student_is_audited_by_source(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    pipeline = Pipeline(mixture(config, sources), str(tmp_path))
    pipeline.run()
    settings = AuditSettings(examples=3, tokens=24, budget=10, tolerance=0.1, largest=1)
    found = AuditSource.open(pipeline.student.url)
    reports = audit_targets(found, settings)
    assert [(report.source, report.examples) for report in reports] == [("maths", 1), ("code", 1), ("prose", 1)]
    assert [report.teacher for report in reports] == [part.config.teacher for part in pipeline.parts]
    assert list(audit_document(reports)["sources"]) == ["maths", "code", "prose"]
    for report, part in zip(reports, pipeline.parts, strict=True):
        assert set(report.tokens) == {"teacher", "student"}
        assert report.stored["p99"] < 2e-3
        # the teacher's side is that of the source's caches alone
        (alone,) = audit_targets(AuditSource.open(part.scores.url), replace(settings, examples=1))
        assert [row for row in report.numbers if row.side == "teacher"] == alone.numbers
    with pytest.raises(UserError, match="have several teachers: audit the scores of each"):
        AuditSource.open(pipeline.student.url, teacher=config.teacher)


def test_methods_are_compared_on_a_mixture(
    config: AlmConfig, sources: Sources, corpus_url: str, tmp_path: Path
) -> None:
    """By source, and together; other texts are scored by the configuration's teacher."""
    chosen = mixture(config, sources, evaluation=config.evaluation.model_copy(update={"samples": 0}))
    domains = [domain_at("other", corpus_url, 6)]
    comparison = MethodComparison(chosen, str(tmp_path / "store"), ("alm+sft", "untrained"), 1, domains)
    report = comparison.run()
    scored = sorted(folder.name.rpartition("-")[0] for folder in (tmp_path / "store" / "teacher_scores").iterdir())
    assert scored == ["code-tiny-llama", "maths-tiny-gemma", "other-tiny-gemma", "prose-tiny-gemma"]
    assert len(list((tmp_path / "store" / "students").iterdir())) == 2
    assert report.domains == ["maths+code+prose", "maths", "code", "prose", "other"]
    value = {(each.domain, each.name): each.values for each in report.measures}
    for run in comparison.runs:
        student = Pipeline(run.config, comparison.root).student.manifest()
        assert student
        of_all: Any = student.results
        for measure, name in ((BITS, "bits_per_byte"), (KL, "word_kl")):
            for part, of_part in of_all["sources"].items():
                expected = of_part[name]["student_after"]
                assert value[part, measure][run.method].value == pytest.approx(expected, rel=1e-9)
            expected = of_all[f"held_out_{name}"]["student_after"]
            assert value["maths+code+prose", measure][run.method].value == pytest.approx(expected, rel=1e-9)
        teacher = of_all["sources"]["code"]["bits_per_byte"]["teacher"]
        assert value["code", BITS]["teacher"].value == pytest.approx(teacher, rel=1e-9)
    page = (Path(comparison.url) / "comparison.md").read_text()
    assert "maths+code+prose, held out, means by share" in page
    assert "code (22.22% of the training), held out" in page


@pytest.mark.bad_input
def test_a_domain_named_like_a_source_is_refused(config: AlmConfig, sources: Sources, corpus_url: str) -> None:
    with pytest.raises(UserError, match="domains: code is the name of two corpora"):
        MethodComparison(mixture(config, sources), "none", ("alm",), 1, [domain_at("code", corpus_url, 5)])


def test_a_finished_mixture_is_known_until_a_source_changes(
    config: AlmConfig, sources: Sources, tmp_path: Path
) -> None:
    chosen = mixture(config, sources)
    pipeline = Pipeline(chosen, str(tmp_path / "store"))
    pipeline.run()
    record_finished(pipeline, summarize(pipeline), "student")
    found = find_finished(chosen, str(tmp_path / "store"), "student")
    assert found
    assert [each.name for each in found.sources] == ["maths", "code", "prose"]
    file = tmp_path / "prose.jsonl"
    file.write_text(file.read_text() + '\n{"text": "one more"}')
    assert find_finished(chosen, str(tmp_path / "store"), "student") is None


def test_the_report_shows_each_source(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    pipeline = Pipeline(mixture(config, sources), str(tmp_path))
    pipeline.run()
    page = read_bytes(stored_report(pipeline.student.url) or "")
    assert page
    text = page.decode()
    words = " ".join(re.sub("<[^>]*>", " ", text).split())
    for name, share in (("maths", "66.7%"), ("code", "22.2%"), ("prose", "11.1%")):
        assert f"source {name}" in words
        assert f"{share} of the training" in words
    assert "of tiny-llama" in words
    drawn = json.loads(re.search(r'id="chart-data">(.*?)</script>', text)[1])  # type: ignore[index]
    by_title = {chart["title"]: chart for chart in drawn}
    rows = pq.read_table(pipeline.student.path / "evaluations_by_source.parquet").to_pylist()
    for title, column in (("Held-out text", "bits_per_byte"), ("Distance to the teacher, held out", "word_kl")):
        lines = {line["name"]: line for line in by_title[f"{title}, by source"]["series"] if line["kind"] == "points"}
        assert list(lines) == ["maths", "code", "prose"]
        for name, line in lines.items():
            of_source = [row for row in rows if row["source"] == name]
            assert line["x"] == [row["step"] for row in of_source]
            assert line["y"] == pytest.approx([row[column] for row in of_source], rel=1e-4)
    losses = by_title["Divergence from the teacher, by source"]["series"]
    assert [line["name"] for line in losses] == ["maths", "code", "prose"]
    references = {line["name"] for line in by_title["Held-out text, by source"]["series"]} - set(lines)
    assert {"code: teacher", "code: before"} <= references


def test_students_of_mixtures_are_side_by_side_by_source(config: AlmConfig, sources: Sources, tmp_path: Path) -> None:
    """In the chart of a source are the students that have it, each in its own color."""
    chosen = [mixture(config, sources), mixture(config, sources[:2])]
    runs = [Pipeline(each, str(tmp_path)) for each in chosen]
    for run in runs:
        run.run()
    page = report_page([run.student.url for run in runs])
    drawn = json.loads(re.search(r'id="chart-data">(.*?)</script>', page)[1])  # type: ignore[index]
    colors = {chart["title"]: {line["color"] for line in chart["series"]} - {"ink"} for chart in drawn}
    assert colors["Divergence from the teacher: maths"] == {"c0", "c1"}
    assert colors["Divergence from the teacher: prose"] == {"c0"}
    swapped = report_page([run.student.url for run in reversed(runs)])
    drawn = json.loads(re.search(r'id="chart-data">(.*?)</script>', swapped)[1])  # type: ignore[index]
    colors = {chart["title"]: {line["color"] for line in chart["series"]} - {"ink"} for chart in drawn}
    assert colors["Divergence from the teacher: prose"] == {"c1"}


def test_a_teacher_is_gone_before_the_next_one_is_loaded(
    config: AlmConfig, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded, alive = Scorer.load, list[weakref.ref[Scorer]](), list[int]()

    def watched(*arguments: Any, **options: Any) -> Scorer:
        gc.collect()
        alive.append(sum(each() is not None for each in loaded))
        scorer = load(*arguments, **options)
        loaded.append(weakref.ref(scorer))
        return scorer

    monkeypatch.setattr(Scorer, "load", watched)
    Pipeline(mixture(config, sources), str(tmp_path)).cache()
    assert alive == [0, 0, 0]
