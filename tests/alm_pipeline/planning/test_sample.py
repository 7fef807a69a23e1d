"""What a sample says of a corpus: exact where it reached the end, near it where it did not, whatever the format."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alm_pipeline.config import CorpusConfig, FilesSource, GeneratedSource
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.files import compression
from alm_pipeline.planning import sample
from alm_pipeline.planning.sample import CorpusEstimate, estimate_corpus
from storage.errors import UserError

FILES, ROWS = 12, 60
Write = Callable[[Path, list[str]], None]


def text(number: int) -> str:
    return f"Row {number} tells a story of {number % 7} lines. " * (1 + number % 5)


def _jsonl(path: Path, texts: list[str]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))


def _gzip(path: Path, texts: list[str]) -> None:
    lines = "".join(json.dumps({"text": each}) + "\n" for each in texts)
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def _json(path: Path, texts: list[str]) -> None:
    path.with_suffix(".json").write_text(json.dumps([{"text": each} for each in texts]))


def _csv(path: Path, texts: list[str]) -> None:
    path.with_suffix(".csv").write_text("text\n" + "".join(f'"{each}"\n' for each in texts))


def _parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path.with_suffix(".parquet"))


def _arrow(path: Path, texts: list[str]) -> None:
    table = pa.table({"text": texts})
    with pa.ipc.new_file(path.with_suffix(".arrow"), table.schema) as writer:
        writer.write_table(table)


def _text(path: Path, texts: list[str]) -> None:
    path.with_suffix(".txt").write_text("\n".join(texts))


WRITERS: dict[str, Write] = {
    "jsonl": _jsonl,
    "gzip": _gzip,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
    "text": _text,
}


@pytest.fixture(autouse=True)
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_LEAST_BYTES", 0)


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that goes on by a step whenever it is looked at, so that a time is a number of examples."""

    def use(step: float) -> None:
        now = 0.0

        def monotonic() -> float:
            nonlocal now
            now += step
            return now

        monkeypatch.setattr("alm_pipeline.planning.sample.time.monotonic", monotonic)

    return use


def _corpus(urls: str, **settings: object) -> CorpusConfig:
    return CorpusConfig.model_validate(
        {"name": "c", "source": FilesSource(urls=(urls,)), "max_bytes": 128, "held_out": 0.1, **settings}
    )


def _truth(corpus: CorpusConfig) -> tuple[int, int]:
    examples = list(iter_examples(corpus, Counter()))
    return len(examples), sum(example.text_bytes for example in examples)


def _near(found: CorpusEstimate, corpus: CorpusConfig, within: float) -> None:
    count, size = _truth(corpus)
    assert found.count
    assert found.text_bytes
    assert found.count.value == pytest.approx(count, rel=within)
    assert found.text_bytes.value == pytest.approx(size, rel=within)


@pytest.mark.parametrize("format", WRITERS)
def test_many_files_are_estimated_from_some(format: str, tmp_path: Path, slow_clock: Callable[[float], None]) -> None:
    for number in range(FILES):
        # later files are longer, so that the first ones alone would say too little
        WRITERS[format](tmp_path / f"{number:02}", [text(k) for k in range(ROWS * (1 + number // 3))])
    corpus = _corpus(f"{tmp_path}/*")
    _near(estimate_corpus(corpus, 60.0), corpus, 1e-9)
    slow_clock(0.001)
    part = estimate_corpus(corpus, 0.8)
    assert 0 < len(part.examples) < _truth(corpus)[0] / 2
    _near(part, corpus, 0.15)


@pytest.mark.parametrize("format", ["jsonl", "gzip", "csv", "parquet", "arrow"])
def test_one_large_file_is_estimated_from_its_beginning(
    format: str, tmp_path: Path, slow_clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sample, compression):  # so that a small file is read in many parts
        monkeypatch.setattr(module, "_READ_BYTES", 2**14)
    # of texts that don't compress to nothing
    rows = [f"{k:x} " + "".join(f"{(k * j * 7919) % 99991:x} " for j in range(1, 40)) for k in range(3000)]
    WRITERS[format](tmp_path / "large", rows)
    corpus = _corpus(f"{tmp_path}/*", max_bytes=4096)
    slow_clock(0.001)
    part = estimate_corpus(corpus, 1.5)
    assert len(part.examples) < 2000
    _near(part, corpus, 0.15)


def test_a_share_and_a_limit_of_the_corpus_count(tmp_path: Path) -> None:
    for number in range(4):
        _jsonl(tmp_path / f"{number}", [text(k) for k in range(200)])
    share = _corpus(f"{tmp_path}/*", sample=0.3)
    _near(estimate_corpus(share), share, 0.15)
    limit = _corpus(f"{tmp_path}/*", max_examples=50)
    found = estimate_corpus(limit)
    assert found.count
    assert found.count.exact
    _near(found, limit, 0.15)


def test_generated_problems_are_counted_by_their_number(slow_clock: Callable[[float], None]) -> None:
    pytest.importorskip("reasoning_gym")
    corpus = CorpusConfig(name="c", source=GeneratedSource(task="basic_arithmetic", size=400, seed=0))
    slow_clock(0.001)
    part = estimate_corpus(corpus, 0.1)
    assert len(part.examples) < 200
    _near(part, corpus, 0.15)


def test_the_sample_is_bounded_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_KEPT_BYTES", 2000)
    _jsonl(tmp_path / "a", [text(k) for k in range(2000)])
    corpus = _corpus(f"{tmp_path}/*")
    found = estimate_corpus(corpus)
    assert sum(example.text_bytes for example in found.examples) <= 2500
    ids = [int(example.id.split("#")[0].rpartition(":")[2]) for example in found.examples]
    assert max(ids) > 1500  # from all over the file
    _near(found, corpus, 1e-9)


@pytest.mark.bad_input
def test_a_corpus_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file matches"):
        estimate_corpus(_corpus(f"{tmp_path}/none/*.jsonl"))
    _jsonl(tmp_path / "a", ["a text"])
    with pytest.raises(UserError, match="has no column 'body'"):
        estimate_corpus(_corpus(f"{tmp_path}/*", text="body"))
