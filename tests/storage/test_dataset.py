"""The stored bytes of a dataset, the programs that read them, and the refusal of incomplete or damaged data."""

import gc
import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.columns import list_rows
from storage.dataset import Dataset, ShardRecord, open_dataset, parse_stored, read_aligned
from storage.errors import UserError
from storage.schemas import Kind
from storage.upkeep.catalog import EntryState, open_entry
from storage.urls import list_names, overwrite, read_bytes, remove
from tests.storage.samples import NAN, columns, dataset, write


def _file(target: Dataset, name: str) -> str:
    return f"{target.url}/{name}"


def _text(target: Dataset, name: str) -> str:
    content = read_bytes(_file(target, name))
    assert content is not None
    return content.decode()


RECORD = """{
 "bytes": BYTES,
 "counts": {
  "tokens": 3
 },
 "dropped": {
  "too_long": 0
 },
 "rows": 3,
 "sha256": "SHA256"
}
"""

MANIFEST = """{
 "bytes": BYTES,
 "counts": {
  "tokens": 3
 },
 "dropped": {
  "no_text": 2,
  "too_long": 0
 },
 "format_version": 2,
 "identity": {
  "corpus": "é😀",
  "sizes": [
   1,
   2
  ],
  "stage_version": 1
 },
 "kind": "teacher_scores",
 "name": "sample-c78edfccd179d9f7",
 "provenance": {
  "commit": "c0ffee"
 },
 "rows": 3,
 "shards": [
  {
   "bytes": BYTES,
   "counts": {
    "tokens": 3
   },
   "dropped": {
    "too_long": 0
   },
   "rows": 3,
   "sha256": "SHA256"
  }
 ]
}
"""


def test_the_files_of_a_dataset(root: str) -> None:
    scores = replace(dataset(root, corpus="é😀"), provenance={"commit": "c0ffee"})
    write(scores)
    shard = read_bytes(scores.shard_url(0)) or b""
    # the shard's bytes depend on the version of Arrow, which writes it into the file
    expected = [
        golden.replace("BYTES", str(len(shard))).replace("SHA256", hashlib.sha256(shard).hexdigest())
        for golden in (RECORD, MANIFEST)
    ]
    assert scores.url == f"{root}/teacher_scores/sample-c78edfccd179d9f7"
    assert list_names(scores.url) == ["manifest.json", "shard-00000.json", "shard-00000.parquet"]
    assert [_text(scores, "shard-00000.json"), _text(scores, "manifest.json")] == expected


_INTS = (
    "required group field_id=-1 {} (List) "
    "{{ repeated group field_id=-1 list {{ required int32 field_id=-1 element; }} }}"
)
_BYTES = _INTS.replace("element;", "element (Int(bitWidth=8, isSigned=false));")
_SHORTS = _INTS.replace("element;", "element (Int(bitWidth=16, isSigned=true));")
_STRINGS = _INTS.replace("int32", "binary").replace("element;", "element (String);")
_BOOLEANS = _INTS.replace("int32", "boolean")
_FLOATS = _INTS.replace("int32", "float")
_DOUBLES = _INTS.replace("int32", "double")
_STRING = "required binary field_id=-1 {} (String);"
_PERHAPS = "optional binary field_id=-1 {} (String);"
_HASH = "required int64 field_id=-1 {} (Int(bitWidth=64, isSigned=false));"
_HASHES = _INTS.replace("int32", "int64").replace("element;", "element (Int(bitWidth=64, isSigned=false));")
PARQUET_SCHEMAS = {
    Kind.SIGNATURES: [(_STRING, "id"), (_HASH, "text_hash"), (_HASHES, "bands"), (_PERHAPS, "question")],
    Kind.DECISIONS: [(_STRING, "id"), (_PERHAPS, "reason"), (_PERHAPS, "repeats")],
    Kind.EXAMPLES: [(_STRING, "id"), (_STRING, "split"), (_STRING, "text"), (_PERHAPS, "messages")],
    Kind.TOKENS: [
        (_STRING, "id"),
        (_INTS, "token_ids"),
        (_INTS, "byte_lengths"),
        (_BYTES, "kinds"),
        (_SHORTS, "turns"),
        (_STRINGS, "roles"),
        (_INTS, "turn_bytes"),
        (_INTS, "uncovered_at"),
        (_INTS, "uncovered_bytes"),
        (_PERHAPS, "dropped"),
    ],
    Kind.ALIGNMENTS: [
        (_STRING, "id"),
        (_INTS, "teacher_tokens"),
        (_INTS, "student_tokens"),
        (_INTS, "byte_lengths"),
        (_BYTES, "kinds"),
        (_BYTES, "ends"),
        (_BOOLEANS, "assistant"),
    ],
    Kind.TEACHER_SCORES: [(_STRING, "id"), (_FLOATS, "logprobs"), (_FLOATS, "boundary_logprobs")],
    Kind.QUESTIONS: [
        (_STRING, "id"),
        (_STRING, "prompt"),
        (_STRINGS, "choices"),
        ("required int32 field_id=-1 {};", "answer"),
        (_STRING, "cluster"),
    ],
    Kind.CHOICE_SCORES: [
        (_STRING, "id"),
        ("optional double field_id=-1 {};", "weight"),
        (_FLOATS.replace("float", "double"), "logprobs"),
        (_INTS, "tokens"),
        (_INTS, "byte_lengths"),
        (_PERHAPS, "dropped"),
    ],
    Kind.PLACES: [
        (_STRING, "id"),
        (_STRING, "before"),
        ("required int32 field_id=-1 {};", "byte"),
        ("required int64 field_id=-1 {};", "text"),
    ],
    Kind.NEXT_BYTES: [
        (_STRING, "id"),
        ("optional double field_id=-1 {};", "weight"),
        (_DOUBLES, "logprobs"),
        (_PERHAPS, "dropped"),
    ],
    Kind.DEMONSTRATIONS: [
        (_STRING, "id"),
        (_STRING, "prompt"),
        (_STRING, "positive"),
        (_STRING, "negative"),
        (_PERHAPS, "neutral"),
    ],
    Kind.NEUTRAL_ANSWERS: [(_STRING, "id"), (_STRING, "answer"), (_INTS, "token_ids")],
    Kind.ACTIVATIONS: [(_STRING, "id"), (_FLOATS, "positive"), (_FLOATS, "negative")],
    Kind.ACTIVATION_SUMS: [
        (_STRING, "id"),
        ("required int64 field_id=-1 {};", "rows"),
        (_DOUBLES, "neutral"),
        (_DOUBLES, "positive"),
        (_DOUBLES, "negative"),
        (_DOUBLES, "squares"),
        (_DOUBLES, "neutral_positive"),
        (_DOUBLES, "neutral_negative"),
    ],
}


def _parquet(target: Dataset) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(read_bytes(target.shard_url(0))))


def test_a_dataset_with_a_long_label_is_written_and_found(tmp_path: Path) -> None:
    """A student of a student of a student is called after all of them."""
    long = Dataset(
        str(tmp_path), Kind.TEACHER_SCORES, "-from-".join(["smollm2-135m-instruct"] * 20), {"stage_version": 1}
    )
    write(long)
    assert Path(long.url).is_dir()
    assert open_dataset(long.url).complete_manifest() == long.complete_manifest()
    assert open_entry(long.url).state == EntryState.COMPLETE


@pytest.mark.parametrize("kind", Kind)
def test_the_parquet_schema(tmp_path: Path, kind: Kind) -> None:
    write(dataset(str(tmp_path), kind))
    found = " ".join(str(_parquet(dataset(str(tmp_path), kind)).schema).split("schema {", 1)[1].split())
    assert found == " ".join(line.format(name) for line, name in PARQUET_SCHEMAS[kind]) + " }"


ENCODINGS = {
    Kind.SIGNATURES: {"id": "dictionary", "text_hash": "plain", "bands": "plain", "question": "dictionary"},
    Kind.DECISIONS: {"id": "dictionary", "reason": "dictionary", "repeats": "dictionary"},
    Kind.EXAMPLES: {"id": "dictionary", "split": "dictionary", "text": "dictionary", "messages": "dictionary"},
    Kind.TOKENS: {
        "id": "dictionary",
        "token_ids": "plain",
        "byte_lengths": "split",
        "kinds": "plain",
        "turns": "dictionary",
        "roles": "dictionary",
        "turn_bytes": "split",
        "uncovered_at": "split",
        "uncovered_bytes": "split",
        "dropped": "dictionary",
    },
    Kind.ALIGNMENTS: {
        "id": "dictionary",
        "teacher_tokens": "split",
        "student_tokens": "split",
        "byte_lengths": "split",
        "kinds": "plain",
        "ends": "dictionary",
        "assistant": "plain",
    },
    Kind.TEACHER_SCORES: {"id": "dictionary", "logprobs": "split", "boundary_logprobs": "split"},
    Kind.QUESTIONS: {
        "id": "dictionary",
        "prompt": "dictionary",
        "choices": "dictionary",
        "answer": "dictionary",
        "cluster": "dictionary",
    },
    Kind.CHOICE_SCORES: {
        "id": "dictionary",
        "weight": "dictionary",
        "logprobs": "split",
        "tokens": "split",
        "byte_lengths": "split",
        "dropped": "dictionary",
    },
    Kind.PLACES: {"id": "dictionary", "before": "dictionary", "byte": "dictionary", "text": "dictionary"},
    Kind.NEXT_BYTES: {"id": "dictionary", "weight": "dictionary", "logprobs": "split", "dropped": "dictionary"},
    Kind.DEMONSTRATIONS: {
        "id": "dictionary",
        "prompt": "dictionary",
        "positive": "dictionary",
        "negative": "dictionary",
        "neutral": "dictionary",
    },
    Kind.NEUTRAL_ANSWERS: {"id": "dictionary", "answer": "dictionary", "token_ids": "plain"},
    Kind.ACTIVATIONS: {"id": "dictionary", "positive": "split", "negative": "split"},
    Kind.ACTIVATION_SUMS: {
        "id": "dictionary",
        "rows": "dictionary",
        "neutral": "split",
        "positive": "split",
        "negative": "split",
        "squares": "split",
        "neutral_positive": "split",
        "neutral_negative": "split",
    },
}


def _encoding(column: Any) -> str:
    if "RLE_DICTIONARY" in column.encodings:
        return "dictionary"
    return "split" if "BYTE_STREAM_SPLIT" in column.encodings else "plain"


@pytest.mark.parametrize("kind", Kind)
def test_the_encodings(tmp_path: Path, kind: Kind) -> None:
    write(dataset(str(tmp_path), kind))
    group = _parquet(dataset(str(tmp_path), kind)).metadata.row_group(0)
    stored = [group.column(index) for index in range(group.num_columns)]
    assert {column.path_in_schema.split(".")[0]: _encoding(column) for column in stored} == ENCODINGS[kind]
    assert {column.compression for column in stored} == {"ZSTD"}


@pytest.mark.parametrize("kind", Kind)
def test_a_shard_is_the_same_bytes_each_time(tmp_path: Path, kind: Kind) -> None:
    once, again = dataset(str(tmp_path / "once"), kind), dataset(str(tmp_path / "again"), kind)
    assert write(once, 2) == write(again, 2)
    assert [read_bytes(once.shard_url(shard)) for shard in (0, 1)] == [
        read_bytes(again.shard_url(shard)) for shard in (0, 1)
    ]


@pytest.mark.parametrize("kind", Kind)
def test_rows_are_read_as_they_were_written(root: str, kind: Kind) -> None:
    write(dataset(root, kind))
    # compared as text, since NaN is not equal to itself
    table = dataset(root, kind).read_shard(0)
    assert repr(table.to_pydict()) == repr({name: pa.array(value).to_pylist() for name, value in columns(kind).items()})


def test_nan_stays_a_number(tmp_path: Path) -> None:
    scores = dataset(str(tmp_path))
    write(scores)
    first, *_ = list_rows(scores.read_shard(0, ["logprobs"])["logprobs"])
    np.testing.assert_array_equal(first, np.array([NAN, -1.5], np.float32))


def test_only_the_requested_columns_are_read(tmp_path: Path) -> None:
    scores = dataset(str(tmp_path))
    write(scores)
    assert scores.read_shard(0, ["logprobs", "id"]).column_names == ["logprobs", "id"]


@pytest.mark.parametrize(
    ("change", "error"),
    [({"id": ["x"]}, pa.ArrowInvalid), ({"id": [None] * 3}, pa.ArrowInvalid), ({"id": [1, 2, 3]}, pa.ArrowTypeError)],
)
def test_columns_that_do_not_fit_the_schema_are_refused(tmp_path: Path, change: Any, error: type[Exception]) -> None:
    scores = dataset(str(tmp_path))
    with pytest.raises(error):
        scores.write_shard(0, columns(scores.kind) | change, {})
    assert scores.record(0) is None


@pytest.mark.parametrize("kind", Kind)
def test_polars_reads_it(tmp_path: Path, kind: Kind) -> None:
    written = dataset(str(tmp_path), kind)
    write(written, 2)
    frame = pl.scan_parquet(f"{written.url}/*.parquet").collect()
    expected = [written.read_shard(shard).to_pylist() for shard in (0, 1)]
    assert repr(frame.to_dicts()) == repr(expected[0] + expected[1])


@pytest.mark.parametrize("kind", Kind)
def test_hugging_face_datasets_reads_it(tmp_path: Path, kind: Kind) -> None:
    import datasets

    written = dataset(str(tmp_path / "root"), kind)
    write(written)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "parquet", data_files=f"{written.url}/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert repr(loaded.to_list()) == repr(written.read_shard(0).to_pylist())


@pytest.mark.parametrize("kind", Kind)
def test_pandas_reads_it(tmp_path: Path, kind: Kind) -> None:
    pd = pytest.importorskip("pandas")
    written = dataset(str(tmp_path), kind)
    write(written)
    frame = pd.read_parquet(written.shard_url(0))
    assert list(frame.columns) == written.read_shard(0).column_names
    assert list(frame["id"]) == written.read_shard(0)["id"].to_pylist()


def test_a_shard_without_a_record_does_not_exist(root: str) -> None:
    scores = dataset(root)
    scores.write_shard(0, columns(scores.kind), {})
    remove(_file(scores, "shard-00000.json"))
    assert scores.record(0) is None
    with pytest.raises(UserError, match=r"shard-00000\.parquet: not complete \(it has no record\)"):
        scores.read_shard(0)
    with pytest.raises(UserError, match=r"shard-00000\.parquet: not complete \(it has no record\)"):
        scores.finish(1)


def test_a_dataset_is_complete_with_its_manifest(root: str) -> None:
    scores = dataset(root)
    scores.write_shard(0, columns(scores.kind), {})
    assert scores.manifest() is None
    with pytest.raises(UserError, match=r"not complete \(it has no manifest\)"):
        scores.complete_manifest()
    written = scores.finish(1)
    assert scores.manifest() == scores.complete_manifest() == written


def test_counts_are_added_up(root: str) -> None:
    manifest = write(dataset(root), 3)
    assert (manifest.rows, manifest.counts, manifest.dropped) == (9, {"tokens": 12}, {"no_text": 2, "too_long": 3})
    assert manifest.bytes == sum(record.bytes for record in manifest.shards)


def _flip(content: bytes) -> bytes:
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return bytes(flipped)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"bytes long, but \d+ in its record"),
        (lambda content: content + b"x", r"bytes long, but \d+ in its record"),
        (_flip, "is damaged"),
    ],
)
def test_a_damaged_shard_is_refused(root: str, damage: Any, message: str) -> None:
    scores = dataset(root)
    write(scores)
    overwrite(scores.shard_url(0), damage(read_bytes(scores.shard_url(0))))
    with pytest.raises(
        UserError, match=rf"shard-00000\.parquet: .*{message}.*`alm repair {scores.url}` writes it again"
    ):
        scores.read_shard(0)


def test_a_shard_swapped_with_its_record_is_refused(root: str) -> None:
    """The shard has another teacher's scores of the same examples: same ids, same size, a record that fits."""
    scores, other = dataset(root), dataset(root, teacher="other")
    write(scores)
    other.write_shard(0, columns(other.kind) | {"logprobs": [[NAN, -2.5], [NAN], []]}, {"tokens": 3})
    other.finish(1)
    for name in ("shard-00000.parquet", "shard-00000.json"):
        overwrite(_file(scores, name), read_bytes(_file(other, name)) or b"")
    with pytest.raises(UserError, match=r"shard-00000\.parquet: is .*`alm repair"):
        scores.read_shard(0)


def test_a_shard_beyond_the_manifest_is_refused(root: str) -> None:
    scores = dataset(root)
    write(scores, 1)
    scores.write_shard(1, columns(scores.kind), {})
    with pytest.raises(UserError, match=r"shard-00001\.parquet: not in this dataset, which has 1 shards"):
        scores.read_shard(1)


def test_every_single_bit_counts(tmp_path: Path) -> None:
    scores = dataset(str(tmp_path))
    write(scores)
    whole = read_bytes(scores.shard_url(0)) or b""
    for place in range(0, len(whole), 97):
        Path(scores.shard_url(0)).write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            scores.read_shard(0)


def test_a_missing_shard_is_named(root: str) -> None:
    scores = dataset(root)
    write(scores)
    remove(scores.shard_url(0))
    with pytest.raises(UserError, match=r"shard-00000\.parquet: is missing although it has a record: `alm repair"):
        scores.read_shard(0)


def test_the_fix_that_messages_name_works(root: str) -> None:
    scores = dataset(root)
    whole = write(scores, 2)
    remove(scores.shard_url(1))
    for name in ("shard-00001.json", "manifest.json"):
        remove(_file(scores, name))
    assert write(scores, 2) == whole
    assert scores.read_shard(1).num_rows == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"rows": 1}', b"null"])
@pytest.mark.parametrize("name", ["shard-00000.json", "manifest.json"])
def test_a_damaged_record_or_manifest_is_named(root: str, name: str, content: bytes) -> None:
    scores = dataset(root)
    write(scores)
    overwrite(_file(scores, name), content)
    with pytest.raises(UserError, match=rf"/{name}: is damaged \(.*\): `alm repair {scores.url}` fixes it"):
        scores.record(0) if name.startswith("shard") else scores.manifest()


def test_another_format_is_named_whatever_its_fields(root: str) -> None:
    scores = dataset(root)
    overwrite(_file(scores, "manifest.json"), b'{"format_version": 1, "layout": "old"}')
    with pytest.raises(UserError, match=r"manifest\.json: was written in format 1, and .* reads format 2"):
        scores.manifest()


def test_datasets_of_the_same_examples_are_read_together(root: str) -> None:
    both = {"tokens": dataset(root, Kind.TOKENS), "scores": dataset(root)}
    for member in both.values():
        write(member, 2)
    tables = read_aligned(both, 1, {"scores": ("logprobs",), "tokens": ("token_ids",)})
    assert {name: table.column_names for name, table in tables.items()} == {
        "scores": ["id", "logprobs"],
        "tokens": ["id", "token_ids"],
    }


@pytest.mark.parametrize("ids", [["doc:0:0", "doc:0:1", "other"], ["doc:0:1", "doc:0:0", "doc:0:2"]])
def test_datasets_of_other_examples_are_refused(root: str, ids: list[str]) -> None:
    both = {"tokens": dataset(root, Kind.TOKENS), "scores": dataset(root)}
    write(both["tokens"])
    both["scores"].write_shard(0, columns(Kind.TEACHER_SCORES) | {"id": ids}, {})
    with pytest.raises(UserError, match=r"shard 0 contains different examples in .*/teacher_scores/.* and .*/tokens/"):
        read_aligned(both, 0, {"tokens": ("token_ids",), "scores": ("logprobs",)})


def test_a_dataset_is_opened_by_its_url(root: str) -> None:
    written = dataset(root)
    manifest = write(written)
    for url in (written.url, written.url + "/"):
        opened = open_dataset(url)
        assert (opened.root, opened.name, opened.manifest()) == (root, written.name, manifest)


def test_a_dataset_is_opened_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = dataset(str(tmp_path))
    write(written)
    for folder, path in [
        (tmp_path.parent, written.url.removeprefix(f"{tmp_path.parent}/")),
        (tmp_path / written.kind, written.name),
    ]:
        monkeypatch.chdir(folder)
        assert open_dataset(path).url == written.url


def test_a_folder_without_a_manifest_is_not_opened(root: str) -> None:
    with pytest.raises(UserError, match=r"not a complete dataset \(it has no manifest\.json\)"):
        open_dataset(f"{root}/teacher_scores/none")


def test_a_moved_dataset_is_refused(root: str) -> None:
    written, other = dataset(root), dataset(root, more=1)
    write(written)
    overwrite(_file(other, "manifest.json"), _text(written, "manifest.json").encode())
    for read in (lambda: open_dataset(other.url), other.manifest, other.complete_manifest):
        with pytest.raises(UserError, match=rf"its manifest belongs to teacher_scores/{written.name}"):
            read()


def test_an_edited_dataset_is_refused(root: str) -> None:
    written = dataset(root)
    write(written)
    manifest = json.loads(_text(written, "manifest.json"))
    manifest["identity"]["stage_version"] = 2
    overwrite(_file(written, "manifest.json"), json.dumps(manifest).encode())
    for read in (lambda: open_dataset(written.url), written.manifest):
        with pytest.raises(UserError, match="its manifest belongs to"):
            read()


def test_provenance_is_not_part_of_the_identity(root: str) -> None:
    written = dataset(root)
    told = replace(written, provenance={"commit": "c0ffee"})
    assert (told, told.name) == (written, written.name)
    write(told)
    assert written.complete_manifest().provenance == {"commit": "c0ffee"}


def test_a_manifest_without_provenance_is_read(root: str) -> None:
    written = dataset(root)
    whole = write(written)
    manifest = json.loads(_text(written, "manifest.json"))
    del manifest["provenance"]
    overwrite(_file(written, "manifest.json"), json.dumps(manifest).encode())
    assert written.manifest() == whole


def test_kind_label_and_identity_name_a_dataset() -> None:
    kinds = {dataset("r", kind).name for kind in Kind}
    assert len(kinds) == len(Kind)
    # keys of an identity can't replace the kind or the format
    posing = Dataset("r", Kind.TOKENS, "sample", {"kind": "examples"})
    assert posing.name != Dataset("r", Kind.EXAMPLES, "sample", {}).name


@pytest.mark.parametrize(
    "content", [b'{"rows": 1, "bytes": 2, "sha256": "", "counts": {}, "dropped": {}}', b"{", b"[]"]
)
@pytest.mark.parametrize("collects", [True, False])
def test_parsing_leaves_the_garbage_collector_as_it_was(content: bytes, collects: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with suppress(UserError):
            parse_stored(ShardRecord, "store/record.json", content)
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was_enabled else gc.disable)()
