"""Bits per byte by corpus and group: held to single comparisons of each cell's own texts."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from alm_pipeline.comparison.corpora import NO_VALUE, named_corpora, script_of, texts_at
from alm_pipeline.comparison.texts import Cell, compare_models
from alm_pipeline.config import FilesSource, ScoreConfig
from alm_pipeline.evaluation.bits_per_byte import bits_and_bytes, bits_per_byte
from storage.errors import UserError

FLOAT32 = ScoreConfig(dtype="float32", mantissa_bits=20)
ROWS = [
    {"text": "Once there was a miller who had three sons.", "domain": "tales", "level": 1},
    {"text": "The miller's youngest son had only a cat.", "domain": "tales", "level": 2},
    {"text": "Жил-был мельник, и было у него три сына.", "domain": "tales", "level": 1},
    {"text": "def add(left, right):\n    return left + right", "domain": "code", "level": 2},
    {"text": "for number in range(10):\n    print(number)", "domain": "code"},
    {"text": "A text of no domain at all.", "domain": None, "level": 1},
]


def _write(folder: Path, name: str, rows: list[dict]) -> str:
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def models(llama_folder: str, gemma_folder: str) -> list[str]:
    return [llama_folder, gemma_folder]


def _alone(models: list[str], folder: Path, rows: list[dict]) -> tuple[Cell, tuple[float, ...]]:
    found = compare_models(models, [texts_at(_write(folder, "alone", rows), "text", 100)], FLOAT32)
    assert found.cells == ()
    return found.total, found.bits_per_byte


@pytest.mark.parametrize("by", ["domain", "script", "level"])
def test_a_cell_is_a_comparison_of_its_own_texts(models: list[str], tmp_path: Path, by: str) -> None:
    corpora = [_write(tmp_path, "one", ROWS[:4]), _write(tmp_path, "two", ROWS[3:])]
    found = compare_models(models, named_corpora(corpora, "text", 100), FLOAT32, by=by)
    cells = {(cell.corpus, cell.group): cell for cell in found.cells}
    expected = {
        "domain": [("one", "tales"), ("one", "code"), ("two", "code"), ("two", NO_VALUE)],
        "script": [("one", "Latin"), ("one", "Cyrillic"), ("two", "Latin")],
        "level": [("one", "1"), ("one", "2"), ("two", "2"), ("two", NO_VALUE), ("two", "1")],
    }[by]
    assert list(cells) == [("one", None), ("two", None), *expected]
    assert found.total.texts == 7
    for (corpus, group), cell in cells.items():
        rows = ROWS[:4] if corpus == "one" else ROWS[3:]
        chosen = [row for row in rows if group is None or group == _group(row, by)]
        alone, bits = _alone(models, tmp_path, chosen)
        assert (cell.texts, cell.text_bytes) == (len(chosen), sum(len(row["text"].encode()) for row in chosen))
        assert cell.text_bytes == alone.text_bytes
        assert [result.value.value for result in cell.bits_per_byte] == pytest.approx(bits, rel=1e-4)


def _group(row: dict, by: str) -> str:
    return script_of(row["text"]) if by == "script" else str(row.get(by) or NO_VALUE)


def test_differences_are_to_the_first_model_on_the_same_resamples(models: list[str], tmp_path: Path) -> None:
    texts = [{"text": f"{'A longer text about ' * (k % 5 + 1)}{k * k} things"} for k in range(30)]
    copied = str(shutil.copytree(models[0], tmp_path / "copy"))
    found = compare_models([*models, copied], [texts_at(_write(tmp_path, "texts", texts), "text", 100)])
    first, second, again = found.total.bits_per_byte
    assert first.difference is None
    assert second.difference is not None and again.difference is not None  # noqa: PT018
    assert second.difference.value == pytest.approx(second.value.value - first.value.value)
    assert second.value.low < second.value.value < second.value.high  # type: ignore[operator]
    assert (again.difference.value, again.difference.low, again.difference.high) == pytest.approx((0, 0, 0), abs=1e-9)
    rows = found.rows(["a", "b", "c"])
    assert [row["model"] for row in rows] == ["a", "b", "c"]
    assert rows[1]["difference_low"] == second.difference.low


def test_pieces_of_a_document_are_one_cluster(models: list[str], tmp_path: Path) -> None:
    file = _write(tmp_path, "long", [{"text": "The same words again and again. " * 100}])
    corpus = texts_at(file, "text", 100).model_copy(update={"max_bytes": 200})
    found = compare_models(models, [corpus], by="script")
    assert found.total.texts > 10
    assert found.total.bits_per_byte[0].value.low is None
    assert [cell.group for cell in found.cells] == ["Latin"]


def test_bits_and_bytes_of_texts_add_up() -> None:
    random = np.random.default_rng(0)
    logprobs, lengths = -random.exponential(2, 50).astype("f4"), random.integers(0, 6, 50).astype(np.int32)
    logprobs[::7] = math.nan
    kinds, groups = random.integers(0, 2, 50).astype(np.uint8), np.sort(random.integers(0, 5, 50))
    bits, sizes = bits_and_bytes(logprobs, lengths, kinds, groups, 7)
    assert len(bits) == len(sizes) == 7
    assert bits.sum() / sizes.sum() == pytest.approx(bits_per_byte(logprobs, lengths, kinds), rel=1e-6)
    for group in range(7):
        chosen = [k for k in range(50) if groups[k] == group and kinds[k] == 0 and not math.isnan(logprobs[k])]
        assert bits[group] == pytest.approx(sum(-float(logprobs[k]) / math.log(2) for k in chosen))
        assert sizes[group] == sum(lengths[k] for k in chosen)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, мир", "Cyrillic"),  # in bytes
        ("Hello and мир", "Latin"),
        ("東京とかな", "Kana"),
        ("123 + 456 😀", "other"),
        ("1,234,567,890 in words", "Latin"),
        ("", "other"),
    ],
)
def test_a_text_is_of_the_script_of_its_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_corpora_have_names(tmp_path: Path) -> None:
    urls = ["news=s3://b/lang=de/*.jsonl", "https://h/tales.jsonl.zst?sig=x=y", "web-text=./x=1/a.parquet"]
    corpora = named_corpora(urls, "text", 3)
    assert [corpus.name for corpus in corpora] == ["news", "tales.jsonl", "web-text"]
    places = [corpus.source.urls[0] for corpus in corpora if isinstance(corpus.source, FilesSource)]
    assert places == ["s3://b/lang=de/*.jsonl", urls[1], "./x=1/a.parquet"]
    assert [c.name for c in named_corpora(["/a/*.jsonl", "/b/ü x.csv"], "text", 3)] == ["texts", "x"]
    assert named_corpora(["/a/b.jsonl"], "text", 3)[0].name == "texts"
    with pytest.raises(UserError, match="two are called 'b'"):
        named_corpora(["/a/b.jsonl", "/c/b.jsonl"], "text", 3)


def test_what_can_not_be_grouped_or_compared_is_refused(models: list[str], tmp_path: Path) -> None:
    file = _write(tmp_path, "texts", [{"text": "One.", "tags": ["a"]}, {"text": "Two."}])
    with pytest.raises(UserError, match=r"row texts\.jsonl:0 has a list"):
        compare_models(models, [texts_at(file, "text", 9)], by="tags")
    for examples in (1, 9):  # also where reading ends before the file does
        with pytest.raises(UserError, match="langauge"):
            compare_models(models, [texts_at(file, "text", examples)], by="langauge")
    empty = _write(tmp_path, "empty", [{"text": "  "}])
    with pytest.raises(UserError, match="empty: contains no text"):
        compare_models(models, named_corpora([file, empty], "text", 9))
    counted = compare_models(models, named_corpora([file, _write(tmp_path, "b", [{"text": ""}, *ROWS])], "text", 9))
    assert counted.left_out == {"b: empty": 1}
