"""The audit of a real store: a tiny Gemma (SentencePiece) and the Llama (byte-level) that it taught."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alm_pipeline.audit.audit import AuditSettings, audit_targets
from alm_pipeline.audit.drawing import draw_audit
from alm_pipeline.audit.numbers import AuditedChunk, AuditReport, GroupNumbers, group_numbers
from alm_pipeline.audit.places import BY, ORDER, PLACES, TextPlaces
from alm_pipeline.audit.sources import AuditSource
from alm_pipeline.audit.tables import number_tables, remarks
from alm_pipeline.config import Debias
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from storage.errors import UserError

SETTINGS = AuditSettings(examples=2, tokens=40, seed=1, budget=40, tolerance=0.05, largest=3)


@pytest.fixture(scope="module")
def report(finished: Pipeline) -> AuditReport:
    (of_all,) = audit_targets(AuditSource.open(finished.student.url), SETTINGS)
    return of_all


def test_both_sides_and_all_forms_have_numbers(report: AuditReport) -> None:
    assert set(report.tokens) == {"teacher", "student"}
    found = {(row.side, row.form) for row in report.numbers if row.by == "all" and row.chunks}
    assert found == {(side, form) for side in ("teacher", "student") for form in ("none", "end", "both")}


def test_the_targets_of_the_teacher_are_those_of_training(report: AuditReport) -> None:
    """By the definition from this pass, and by the pipeline from what is stored."""
    chunks = [chunk for chunk in report.chunks if chunk.side == "teacher"]
    assert len(chunks) > 20
    np.testing.assert_allclose([chunk.value for chunk in chunks], [chunk.stored for chunk in chunks], atol=2e-3)
    assert report.stored["p99"] < 2e-3


def test_targets_of_the_student_are_those_of_its_loss(finished: Pipeline, report: AuditReport) -> None:
    """Of `end`, from the student's own logits, token by token."""
    model = LoadedTokenizer(str(finished.student.fetch()))
    chunks = [chunk for chunk in report.chunks if (chunk.side, chunk.form) == ("student", "end")]
    loaded = AuditSource.open(finished.student.url)[0].student
    assert loaded is not None
    llama = loaded.load("float32", device="cpu")
    texts = _texts(finished)
    for chunk in chunks[:20]:
        ids = model.fast.encode(texts[chunk.example], add_special_tokens=False)
        ends = np.cumsum([len(model.view.spelling[id_]) for id_ in ids]).tolist()
        with torch.inference_mode():
            logprobs = llama(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
        first, last = ends.index(chunk.start) + 1, ends.index(chunk.end) + 1
        value = sum(logprobs[k - 1, ids[k]] for k in range(first, last))
        value += np.log(np.exp(logprobs[last - 1, model.boundary_ids]).sum())
        assert chunk.value == pytest.approx(value, abs=1e-3)


def _texts(finished: Pipeline) -> dict[str, str]:
    table = finished.examples.read_shard(0).to_pylist()
    for shard in range(1, len(finished.examples.complete_manifest().shards)):
        table += finished.examples.read_shard(shard).to_pylist()
    return {row["id"]: row["text"] for row in table}


def test_every_chunk_is_in_one_group_of_each_grouping(report: AuditReport) -> None:
    for by, names in ORDER.items():
        assert {chunk.groups[by] for chunk in report.chunks} <= set(names)
    by_all = {(row.side, row.form): row for row in report.numbers if row.by == "all"}
    for by in BY:
        for (side, form), whole in by_all.items():
            rows = [row for row in report.numbers if (row.side, row.form, row.by) == (side, form, by)]
            assert sum(row.chunks for row in rows) == whole.chunks
            assert sum(row.uncertain for row in rows) == whole.uncertain


def test_caches_alone_have_only_the_teacher(finished: Pipeline, report: AuditReport) -> None:
    settings = replace(SETTINGS, examples=1, largest=0)
    by_alignments, by_scores = (
        audit_targets(AuditSource.open(url), settings)[0] for url in (finished.alignments.url, finished.scores.url)
    )
    assert set(by_alignments.tokens) == {"teacher"}
    assert replace(by_alignments, url="", numbers=[]) == replace(by_scores, url="", numbers=[])
    of_teacher = {(c.example, c.start, c.end, c.form): c.exact for c in report.chunks if c.side == "teacher"}
    for chunk in by_scores.chunks:
        key = (chunk.example, chunk.start, chunk.end, chunk.form)
        assert key not in of_teacher or of_teacher[key] == pytest.approx(chunk.exact, abs=1e-6)


def test_the_report_is_plain_and_shows_texts(report: AuditReport) -> None:
    document = report.document()
    assert document["numbers"][0]["side"] == "teacher"
    assert "chunks" not in document
    tables = list(number_tables(report))
    assert [(side, title) for side, title, _ in tables][:2] == [("teacher", "all chunks"), ("teacher", BY["script"])]
    cases = [case.row() for case in report.largest]
    assert len(cases) == 6
    errors = [abs(case["error"]) for case in cases if case["side"] == "teacher"]
    assert errors == sorted(errors, reverse=True)
    texts = [case["text"].replace("⟦", "").replace("⟧", "") for case in cases]
    assert any("".join(case["teacher_tokens"]) in text for case, text in zip(cases, texts, strict=True))
    assert any("not certain" in sentence for sentence in remarks(report))


def test_the_picture_is_a_png(report: AuditReport) -> None:
    numbers = [row for row in report.numbers if row.side == "teacher" and row.by == "end"]
    png = draw_audit(replace(report, tokens={"teacher": 1}, numbers=numbers))
    assert png.startswith(b"\x89PNG")


def test_numbers_leave_out_what_is_not_certain() -> None:
    chunks = [_chunk(error, 0.0) for error in (0.1, -0.2, 0.3)] + [_chunk(9.0, 0.5), _chunk(math.nan, 0.0)]
    row = next(row for row in group_numbers(chunks, 0.01) if row.by == "all")
    assert (row.chunks, row.uncertain) == (3, 2)
    assert row.median == pytest.approx(0.2)
    assert row.mean == pytest.approx(0.2 / 3)


def _chunk(error: float, left_out: float, form: Debias = "end") -> AuditedChunk:
    return AuditedChunk("teacher", form, "0", 0, 4, error, 0.0, left_out, 0.0, {"all": "all"})


def test_groups_without_a_certain_chunk_have_no_numbers() -> None:
    row = GroupNumbers.of("teacher", "end", "all", "all", [_chunk(1.0, 0.5)], 0.1)
    assert (row.chunks, row.uncertain, row.median) == (0, 1, None)


@pytest.mark.parametrize(
    ("text", "byte", "place"),
    [
        ("ab cd", 2, "word | space"),
        ("ab. cd", 3, "punctuation | space"),
        ("ab  cd", 3, "space | any"),
        ("abcd", 2, "word | word"),
        ("ab.cd", 2, "word | punctuation"),
        ("ab.cd", 3, "punctuation | any"),
        ("東京", 1, "inside a character"),
        ("abcd", 4, "edge of the text"),
    ],
)
def test_places(text: str, byte: int, place: str) -> None:
    assert place in PLACES
    assert TextPlaces(text).place(byte) == place


def _error(url: str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        _ = AuditSource.open(url, **options)[0].teacher  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.bad_input
def test_urls_and_models_that_can_not_be_audited(finished: Pipeline, root: Path, llama_folder: str) -> None:
    assert "which can be audited" in _error(finished.examples.url)
    assert "not a finished student" in _error(str(root / "students" / "none-0123456789abcdef"))
    assert "leave the option out" in _error(finished.alignments.url, student=llama_folder)
    assert "files differ" in _error(finished.student.url, teacher=llama_folder)


@pytest.mark.bad_input
def test_scores_without_alignments_and_with_several(finished: Pipeline, tmp_path: Path) -> None:
    import shutil

    store = Path(shutil.copytree(finished.root, tmp_path / "store"))
    scores = f"{store}/teacher_scores/{finished.scores.name}"
    shutil.rmtree(store / "alignments")
    assert "no complete alignments" in _error(scores)


def test_models_may_have_moved(finished: Pipeline, gemma_folder: str, tmp_path: Path) -> None:
    import shutil

    moved = [shutil.copytree(folder, tmp_path / name) for folder, name in _folders(finished, gemma_folder)]
    (source,) = AuditSource.open(finished.student.url, teacher=str(moved[0]), student=str(moved[1]))
    assert source.teacher.name == str(moved[0])
    assert [tokenizer.name for tokenizer in source.tokenizers.values()] == [str(folder) for folder in moved]


def _folders(finished: Pipeline, gemma_folder: str) -> Sequence[tuple[str, str]]:
    return (gemma_folder, "teacher"), (str(finished.student.fetch()), "student")
