"""The tokenizer report, held to loops over each text's tokens."""

import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from statistics import mean, median

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from alm_pipeline.comparison.corpora import named_corpora
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.tokenizer_report.drawing import draw_report
from alm_pipeline.tokenizer_report.files import schema_of, write_tables
from alm_pipeline.tokenizer_report.report import TokenizerReport, report_tokenizers
from alm_pipeline.transfer.swap import embedding_tables
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError

ROWS = [
    {"text": "Once there was a miller who had three sons, a mill, a donkey and a cat.", "domain": "tales"},
    {"text": "The sons had to grind, the donkey to carry flour, and the cat to catch mice.", "domain": "tales"},
    {"text": "Жил-был мельник, и было у него три сына, мельница, осёл и кот.", "domain": "tales"},
    {"text": "def add(left, right):\n    return left + right\n", "domain": "code"},
    {"text": "for number in range(10):\n\tprint(f'{number:02d}')", "domain": "code"},
    {"text": "東京は日本の首都です。 😀 naïve café", "domain": None},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def names(llama_folder: str, gemma_folder: str) -> list[str]:
    return [llama_folder, gemma_folder]


@pytest.fixture(scope="module")
def report(names: list[str], corpus: str) -> TokenizerReport:
    return report_tokenizers(names, named_corpora([corpus], "text", 100), "domain")


def _tokens(name: str, text: str) -> list[tuple[int, int]]:
    """Return the id and the bytes of each token of a text: those that it spells, less a space put before the text."""
    tokenizer = LoadedTokenizer(name)
    ids = tokenizer.fast.encode(text, add_special_tokens=False)
    lengths = [len(tokenizer.view.spelling[id_]) for id_ in ids]
    extra = sum(lengths) - len(text.encode())
    assert extra in (0, 1)
    return [
        (id_, length - (extra if not place else 0))
        for place, (id_, length) in enumerate(zip(ids, lengths, strict=True))
    ]


def _chunks(first: list[tuple[int, int]], other: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return the tokens of both sides and the bytes of each chunk: between places where tokens of both end."""
    found, own, theirs, own_bytes, their_bytes, waiting = [], 0, 0, 0, 0, list(other)
    for _, length in first:
        own, own_bytes = own + 1, own_bytes + length
        while waiting and their_bytes < own_bytes:
            theirs, their_bytes = theirs + 1, their_bytes + waiting.pop(0)[1]
        if own_bytes == their_bytes:
            found.append((own, theirs, own_bytes))
            own, theirs, own_bytes, their_bytes = 0, 0, 0, 0
    return found


def test_lengths_are_counts_of_tokens(report: TokenizerReport, names: list[str]) -> None:
    groups = {None: ROWS, "tales": ROWS[:3], "code": ROWS[3:5], "(none)": ROWS[5:]}
    cells = [(row["corpus"], row["group"], row["tokenizer"]) for row in report.lengths]
    assert cells == [(group and "texts", group, name) for group in groups for name in names]
    for row in report.lengths:
        texts = [item["text"] for item in groups[row["group"]]]
        count, size = sum(len(_tokens(row["tokenizer"], text)) for text in texts), sum(len(t.encode()) for t in texts)
        assert (row["texts"], row["text_bytes"], row["text_tokens"]) == (len(texts), size, count)
        assert row["bytes_per_token"] == pytest.approx(size / count)
        assert row["relative_tokens"] == pytest.approx(count / sum(len(_tokens(names[0], text)) for text in texts))
        if len(texts) > 1:
            assert row["low"] <= row["bytes_per_token"] <= row["high"]
        else:
            assert row["low"] is row["high"] is None


def test_tokens_are_shared_by_their_bytes(report: TokenizerReport, names: list[str]) -> None:
    views = {name: LoadedTokenizer(name).view for name in names}
    ordinary = {
        name: {id_: spelling for id_, spelling in enumerate(view.spelling) if spelling and not view.special[id_]}
        for name, view in views.items()
    }
    uses = {name: Counter(id_ for row in ROWS for id_, _ in _tokens(name, row["text"])) for name in names}
    assert [(row["tokenizer"], row["other"]) for row in report.overlap] == [tuple(names), tuple(names[::-1])]
    for row in report.overlap:
        own, other = ordinary[row["tokenizer"]], set(ordinary[row["other"]].values())
        shared = [id_ for id_, spelling in own.items() if spelling in other]
        used = uses[row["tokenizer"]]
        total = sum(used.values()), sum(len(own[id_]) * count for id_, count in used.items())
        assert 0 < row["shared"] == len(shared)
        assert row["share"] == pytest.approx(len(shared) / len(own))
        assert row["share_of_uses"] == pytest.approx(sum(used[id_] for id_ in shared) / total[0])
        assert row["share_of_bytes"] == pytest.approx(sum(used[id_] * len(own[id_]) for id_ in shared) / total[1])
    for row in report.tokenizers:
        own, used = ordinary[row["tokenizer"]], uses[row["tokenizer"]]
        assert (row["tokens"], row["used"]) == (len(own), len(used))
        assert row["never_used"] == len(own) - len(used)
        assert row["mean_bytes"] == pytest.approx(mean(map(len, own.values())))
    counted = {(row["tokenizer"], row["id"]): row["uses"] for row in report.uses}
    assert {key: count for key, count in counted.items() if count} == {
        (name, id_): count for name in names for id_, count in uses[name].items()
    }


def test_chunks_are_those_between_common_ends(report: TokenizerReport, names: list[str]) -> None:
    chunks = [chunk for row in ROWS for chunk in _chunks(*(_tokens(name, row["text"]) for name in names))]
    patterns = Counter((own, theirs) for own, theirs, _ in chunks)
    assert {(row["tokens"], row["other_tokens"]): row["chunks"] for row in report.chunk_tokens} == patterns
    assert [row["chunks"] for row in report.chunk_tokens] == sorted(patterns.values(), reverse=True)
    assert {row["bytes"]: row["chunks"] for row in report.chunk_bytes} == Counter(size for _, _, size in chunks)
    (row,) = report.chunks
    sizes = [size for _, _, size in chunks]
    assert row == pytest.approx(
        {
            "tokenizer": row["tokenizer"],
            "other": row["other"],
            "chunks": len(chunks),
            "mean_bytes": mean(sizes),
            "median_bytes": median(sizes),
            "largest_bytes": max(sizes),
            "tokens_per_chunk": mean(own for own, _, _ in chunks),
            "other_tokens_per_chunk": mean(theirs for _, theirs, _ in chunks),
            "one_to_one": patterns[1, 1] / len(chunks),
        }
    )


def test_what_a_transfer_changes_is_what_it_does(names: list[str], corpus: str, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    transfer(*names, str(moved))
    found = report_tokenizers(names[1:], named_corpora([corpus], "text", 100), model=names[0]).transfer
    before, after = (AutoModelForCausalLM.from_pretrained(name) for name in (names[0], moved))
    assert [row["tokenizer"] for row in found] == names
    for row, model in zip(found, (before, after), strict=True):
        tables = embedding_tables(model)
        assert row["parameters"] == model.num_parameters()
        assert row["rows"] == model.get_input_embeddings().weight.shape[0]
        assert row["table_parameters"] == sum(table.value.numel() for table in tables)
        assert row["parameter_change"] == model.num_parameters() - before.num_parameters()
    tokens = [sum(len(_tokens(name, row["text"])) for row in ROWS) for name in names]
    size = sum(len(row["text"].encode()) for row in ROWS)
    assert found[1]["relative_tokens"] == pytest.approx(tokens[1] / tokens[0])
    assert found[1]["context_bytes"] == round(before.config.max_position_embeddings * size / tokens[1])


def _saved(tokenizer: Tokenizer, folder: Path) -> str:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def test_texts_that_a_tokenizer_changes_are_counted_by_reason(
    byte_level: PreTrainedTokenizerFast, llama_folder: str, tmp_path: Path
) -> None:
    lower = Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    file = tmp_path / "mixed.jsonl"
    texts = ["all in small letters", "With a Capital", "more in small letters", "", "Another"]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    names = [llama_folder, _saved(lower, tmp_path / "lower")]
    found = report_tokenizers(names, named_corpora([str(file)], "text", 100))
    assert found.left_out == [
        {"tokenizer": None, "corpus": "texts", "reason": "empty", "texts": 1},
        {"tokenizer": names[1], "corpus": "texts", "reason": "changed_by_lowercase", "texts": 2},
    ]
    assert [row["texts"] for row in found.lengths] == [2, 2]
    assert found.chunks[0]["one_to_one"] == 1  # what is compared has the same tokens
    capitals = tmp_path / "capitals.jsonl"
    capitals.write_text(json.dumps({"text": "Capital"}))
    with pytest.raises(UserError, match="no text that every tokenizer can represent"):
        report_tokenizers(names, named_corpora([str(capitals)], "text", 100))


def test_the_tables_are_files(report: TokenizerReport, tmp_path: Path) -> None:
    write_tables(report, tmp_path / "tables")
    for field in fields(report):
        table = pq.read_table(tmp_path / "tables" / f"{field.name}.parquet")
        rows = getattr(report, field.name)
        assert table.schema == schema_of(field.name)
        assert table.to_pylist() == rows
        assert not rows or set(table.column_names) == set(rows[0])
    with pytest.raises(UserError, match="exists already"):
        write_tables(report, tmp_path / "tables")
    assert draw_report(report) == draw_report(report)


def test_one_tokenizer_and_wrong_ones(names: list[str], corpus: str) -> None:
    corpora = named_corpora([corpus], "text", 100)
    alone = report_tokenizers(names[:1], corpora, "file")
    assert [row["group"] for row in alone.lengths] == [None, "texts.jsonl"]
    assert alone.chunks == alone.overlap == alone.transfer == []
    assert draw_report(alone)
    with pytest.raises(UserError, match="is named twice"):
        report_tokenizers([names[0]] * 2, corpora)


def test_the_lengths_are_those_of_a_run(names: list[str], pipeline_of_report: Pipeline) -> None:
    """The numbers of a run's own stages, on its own examples."""
    run = pipeline_of_report
    examples = run.examples.read_shard(0)["text"].to_pylist()
    assert examples
    counts = {side: run.tokens(side).complete_manifest().counts["tokens"] for side in ("teacher", "student")}  # type: ignore[arg-type]
    found = report_tokenizers(names, [run.config.corpus], None)
    tokens = {row["tokenizer"]: row["text_tokens"] for row in found.lengths}
    special = {name: sum(map(len, LoadedTokenizer(name).frame)) for name in names}
    rows = run.examples.complete_manifest().rows
    assert counts["student"] == tokens[names[0]] + special[names[0]] * rows
    assert counts["teacher"] == tokens[names[1]] + special[names[1]] * rows
    assert found.chunks[0]["chunks"] == run.alignments.complete_manifest().counts["chunks"] - _unpaired(run)


def _unpaired(run: Pipeline) -> int:
    shards = range(len(run.alignments.complete_manifest().shards))
    kinds = [kind for shard in shards for row in run.alignments.read_shard(shard)["kinds"].to_pylist() for kind in row]
    return sum(kind != 0 for kind in kinds)


@pytest.fixture
def pipeline_of_report(config, tmp_path: Path) -> Pipeline:
    run = Pipeline(config, str(tmp_path))
    run.shard()
    run.tokenize("teacher")
    run.tokenize("student")
    run.align()
    return run
