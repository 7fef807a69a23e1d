"""Every format and compression with every damage ends in an error that names the file, or in a count; never else."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alm_pipeline.config import FileFormat
from alm_pipeline.corpus.files.compression import COMPRESSIONS
from alm_pipeline.corpus.files.kinds import ENDINGS
from alm_pipeline.corpus.files.readers import READERS
from storage.errors import UserError
from tests.alm_pipeline.corpus.files_of_kinds import COMPRESS, ROWS, TEXTS, WRITE, arrow_file
from tests.alm_pipeline.corpus.helpers import corpus, jsonl, read, texts

LINES: tuple[FileFormat, ...] = ("jsonl", "json", "csv", "tsv", "text")
"""The formats that may be compressed as a whole."""


def content(format: FileFormat) -> bytes:
    return WRITE[format][1](ROWS)


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_the_formats_and_compressions_of_these_tests_are_all_there_are() -> None:
    assert set(WRITE) == set(READERS) == set(ENDINGS)
    assert set(COMPRESS) == set(COMPRESSIONS)


@pytest.mark.parametrize(("format", "ending"), [(format, end) for format, ends in ENDINGS.items() for end in ends])
def test_every_ending_is_read_in_any_case(tmp_path: Path, format: FileFormat, ending: str) -> None:
    for name in (f"a{ending}", f"B{ending.upper()}"):
        found = texts(corpus(written(tmp_path, name, content(format))))
        assert list(found.values()) == (["\n".join(TEXTS)] if format == "text" else TEXTS)


def test_arrow_files_are_read_as_streams_are(tmp_path: Path) -> None:
    assert list(texts(corpus(written(tmp_path, "a.arrow", arrow_file(ROWS)))).values()) == TEXTS


@pytest.mark.parametrize("format", LINES)
@pytest.mark.parametrize("compression", COMPRESS)
def test_the_content_says_how_it_is_compressed(tmp_path: Path, format: FileFormat, compression: str) -> None:
    """Under its own ending, none, another's, or where a download has already decompressed it."""
    ending, compress = COMPRESS[compression]
    end, plain = WRITE[format][0], content(format)
    expected = list(texts(corpus(written(tmp_path, f"plain{end}", plain))).values())
    for name, data in [
        (f"a{end}{ending}", compress(plain)),
        (f"b{end}", compress(plain)),
        (f"c{end}.gz", compress(plain)),
        (f"d{end}{ending}", plain),
        (f"e{end}{ending.upper()}", compress(plain[:20]) + compress(b"") + compress(plain[20:])),
    ]:
        assert list(texts(corpus(written(tmp_path, name, data))).values()) == expected, name


COMPRESSED_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off in its last byte": lambda data: data[:-1],
    "cut off in the middle": lambda data: data[: len(data) // 2],
    "cut off at its beginning": lambda data: data[:16],
    "followed by other data": lambda data: data + b"and something else",
    "second member damaged": lambda data: data + b"??" + data[2:],
    "second member cut off": lambda data: data + data[: len(data) // 2],
}


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", COMPRESSED_DAMAGE)
@pytest.mark.parametrize("compression", COMPRESS)
def test_damaged_compressed_data_is_named(tmp_path: Path, compression: str, damage: str) -> None:
    ending, compress = COMPRESS[compression]
    rows = compress(jsonl(*({"text": os.urandom(20).hex()} for _ in range(300))))
    path = written(tmp_path, f"a.jsonl{ending}", COMPRESSED_DAMAGE[damage](rows))
    with pytest.raises(UserError, match=rf"^cannot read .*/a\.jsonl\{ending}: .*; fix or remove the file"):
        read(corpus(path))


@pytest.mark.bad_input
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"", "is empty, though its name says that it is compressed", id="empty"),
        pytest.param(b"\x00\x01garbage", "is not compressed data, though its name says", id="zeros"),
        pytest.param(bytes(range(128, 256)), "is not compressed data, though its name says", id="no text"),
    ],
)
def test_what_is_named_compressed_and_is_not(tmp_path: Path, compression: str, data: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"/a\.jsonl\..* {sentence}"):
        read(corpus(written(tmp_path, f"a.jsonl{COMPRESS[compression][0]}", data)))


FOREIGN = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "an archive": b"PK\x03\x04" + bytes(60),
    "an archive (tar)": b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
    "Parquet": WRITE["parquet"][1](ROWS),
    "Arrow data": arrow_file(ROWS),
    "a document or database": b"%PDF-1.7\n",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("format", LINES)
def test_what_is_of_another_kind_than_its_name_says(tmp_path: Path, format: FileFormat, what: str) -> None:
    with pytest.raises(UserError, match=rf"/a\{WRITE[format][0]} is {what.partition(' (')[0]}.*, or exclude it"):
        read(corpus(written(tmp_path, f"a{WRITE[format][0]}", FOREIGN[what])))


@pytest.mark.bad_input
@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        pytest.param(lambda data: b"", r"cannot read .*|.*is not an Arrow file or a whole stream", id="empty"),
        pytest.param(lambda data: data[:-1], r"cannot read .*|.*is not an Arrow file or a whole stream", id="cut off"),
        pytest.param(
            lambda data: data[: len(data) // 2], r"cannot read .*|.*not an Arrow file", id="cut in the middle"
        ),
        pytest.param(lambda data: b"garbage " * 40, r"cannot read .*|.*not an Arrow file", id="garbage"),
        pytest.param(
            lambda data: FOREIGN["a Git LFS pointer"], r".*is a Git LFS pointer and not the data", id="pointer"
        ),
        pytest.param(COMPRESS["gzip"][1], r".*is compressed as a whole \(gzip\), .*unpack it", id="compressed"),
        pytest.param(COMPRESS["zstd"][1], r".*is compressed as a whole \(zstd\), .*unpack it", id="zstd"),
    ],
)
def test_damaged_tables_are_named(
    tmp_path: Path, format: FileFormat, damage: Callable[[bytes], bytes], sentence: str
) -> None:
    path = written(tmp_path, f"a{WRITE[format][0]}", damage(content(format)))
    with pytest.raises(UserError, match=sentence) as caught:
        read(corpus(path))
    assert str(path) in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("write", [arrow_file, WRITE["arrow"][1]], ids=["file", "stream"])
@pytest.mark.parametrize("instead", [b"\x7f" * 4, b"\xff" * 4, bytes(4)], ids=["large", "negative", "zero"])
def test_wrong_numbers_in_arrow_data_do_not_end_the_process(
    tmp_path: Path, write: Callable[..., bytes], instead: bytes
) -> None:
    """As lengths and offsets, which Arrow follows out of the file unless the batch is validated first."""
    whole = write(ROWS)
    for start in range(0, len(whole), 4):
        with contextlib.suppress(UserError):
            read(corpus(written(tmp_path, "a.arrow", whole[:start] + instead + whole[start + 4 :])))


@pytest.mark.bad_input
def test_a_flipped_byte_in_a_page_of_parquet_is_found_by_its_checksum(tmp_path: Path) -> None:
    data = bytearray(content("parquet"))
    data[data.index(b"three")] ^= 1
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet: .*CRC"):
        read(corpus(written(tmp_path, "a.parquet", bytes(data))))


@pytest.mark.bad_input
def test_encrypted_parquet_is_named(tmp_path: Path) -> None:
    class Keys(pe.KmsClient):
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return key_bytes

        def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
            return wrapped_key

    factory = pe.CryptoFactory(lambda connection: Keys())
    keys = factory.file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration(footer_key="foot", column_keys={"text": ["text"]})
    )
    table = pa.table({"text": ["secret"]})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet: .*encrypt"):
        read(corpus(tmp_path / "a.parquet"))


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_table_without_rows_has_none(tmp_path: Path, format: FileFormat) -> None:
    table = pa.table({"text": pa.array([], pa.string())})
    path = tmp_path / f"a{WRITE[format][0]}"
    if format == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    assert read(corpus(path)) == ([], {})


_NO_OBJECT = r"read as jsonl, has no JSON object in any of its \d+ rows; set corpus.source.format to json if"
_NO_JSON = {
    "an indented object": b'{\n "text": "a"\n}\n',
    "CSV": b"text,n\na,1\n",
    "HTML": b"<!doctype html>\n<html></html>\n",
    "objects after carriage returns": b'{"text": "a"}\r{"text": "b"}\r',
    "UTF-16 without a mark": '{"text": "a"}\n'.encode("utf-16-le"),
    "arrays": b'["a"]\n["b"]\n',
    "zeros": bytes(100),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        pytest.param("a.csv", b"", "is empty: it needs a header", id="empty"),
        pytest.param("a.csv", b"\n\n", "is empty: it needs a header", id="blank"),
        pytest.param("a.csv", b"text,n\na\n", r"row 0 \(ends in line 2\), has 1 fields and the header 2", id="short"),
        pytest.param("a.csv", b"text,n\na,1\nb,c,2\n", r"row 1 \(ends in line 3\), has 3 fields", id="long row"),
        pytest.param(
            "a.csv", b'text,n\n"a\nb",1\nc\n', r"row 1 \(ends in line 4\), has 1 fields", id="after two lines"
        ),
        pytest.param(
            "a.csv", b'text,n\n"a,1\nb,2\n', "row that ends in line 3: unexpected end of data", id="open quote"
        ),
        pytest.param(
            "a.csv", b'text,n\n"a"b,1\n', "row that ends in line 2: ',' expected after '\"'", id="quote inside"
        ),
        pytest.param("a.csv", b"text;n\na;1\n", "separated by semicolons and not by commas: write it", id="semicolons"),
        pytest.param("a.csv", b"text\tn\na\t1\n", "tabs and not by commas: set corpus.source.format to tsv", id="tabs"),
        pytest.param("a.csv", b"text|n\na|1\n", "separated by bars and not by commas", id="bars"),
        pytest.param("a.tsv", b"text,n\na,1\n", "commas and not by tabs: set corpus.source.format to csv", id="commas"),
        pytest.param("a.csv", b"text,text\na,b\n", "has the column 'text' twice", id="column twice"),
        pytest.param("a.csv", b"body,n\na,1\n", r"has no column 'text'; it has 'body' \(text\), 'n' ", id="no column"),
        pytest.param("a.csv", "text\nä\n".encode("utf-16"), "is UTF-16; convert it: iconv", id="utf-16"),
        pytest.param(
            "a.jsonl", '{"text": "ä"}\n'.encode("utf-16"), "is UTF-16; convert it: iconv", id="json in utf-16"
        ),
        pytest.param("a.jsonl", b'[{"text": "x"}]', "contains one JSON array.*rename it to .json", id="array"),
        pytest.param("a.json", b'[{"text": "x"}, {"text": ', "row 1, is not valid JSON: ", id="array cut in a row"),
        pytest.param("a.json", b'[{"text": "x"}', "row 1, ends within its array", id="array cut between rows"),
        pytest.param("a.json", b'[{"text": "x"},', "row 1, ends within its array", id="array cut after a comma"),
        pytest.param("a.json", b'[{"text": "x"} {"text": "y"}]', "row 1, has '{' between rows", id="no comma"),
        pytest.param("a.json", b'[{"text": "x"}]\n{}', "has more after its array", id="more"),
        pytest.param("a.json", b'[{"text": "x"}, {text: 1}]', "row 1, is not valid JSON: Expecting prop", id="no JSON"),
        pytest.param("a.json", b'[{"text": "x"},\n' + b"[" * 100_000, "row 1, is nested too deeply", id="deep"),
        pytest.param("a.json", b'{\n"body": "x"\n}', "has no column 'text'; it has 'body'", id="another object"),
        pytest.param("a.jsonl", jsonl({"a": 1}, {"b": 2}), "has no column 'text'; it has 'a' .*, 'b'", id="in no row"),
        pytest.param("a.jsonl", jsonl({}), "has no column 'text'; it has none.*corpus.source.exclude", id="no columns"),
        *[pytest.param("a.jsonl", data, _NO_OBJECT, id=f"{what} as JSONL") for what, data in _NO_JSON.items()],
        pytest.param("a.json", b'["a", "b"]', "has no JSON object in any of its 2 rows; fix or", id="array of texts"),
        pytest.param("a.json", b'"a"\n"b"', "has no JSON object in any of its 2 rows; fix or", id="texts in lines"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"{name}.*{sentence}"):
        read(corpus(written(tmp_path, name, data)))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        pytest.param("a.jsonl", b'{"text": "x", "text": "y"}', "repeated_key", id="key twice"),
        pytest.param("a.jsonl", b'{"text": "x", "meta": {"a": 1, "a": 2}}', "repeated_key", id="key twice inside"),
        pytest.param("a.jsonl", b"\0" * 100, "invalid_json", id="zeros of a crash"),
        pytest.param("a.jsonl", b'{"text": "x"} {"text": "y"}', "invalid_json", id="two in a line"),
        pytest.param("a.jsonl", b"{'text': 'x'}", "invalid_json", id="Python"),
        pytest.param("a.jsonl", b'{"text": NaN}', "not_text", id="NaN"),
        pytest.param("a.json", b'[5, {"text": "good"}]', "invalid_json", id="number in an array"),
        pytest.param("a.json", b'[{"text": "x", "text": 1}]', "repeated_key", id="key twice in an array"),
        pytest.param("a.json", b'[{"text": "\xff"}]', "invalid_utf8", id="array not UTF-8"),
        pytest.param("a.json", b'{"text": "x"}\n{"other": "x"}', "missing_column", id="lines in .json"),
        pytest.param("a.csv", b"text\n\xff\n", "invalid_utf8", id="CSV not UTF-8"),
        pytest.param("a.csv", b'text,n\n"",1\n', "empty", id="CSV without a value"),
        pytest.param("a.tsv", b"text\tn\n\xff\t1\n", "invalid_utf8", id="TSV not UTF-8"),
        pytest.param("a.txt", "text".encode("utf-16-le"), "not_text", id="text in UTF-16"),
        pytest.param("a.txt", b"PNG\0\0", "not_text", id="no text"),
    ],
)
def test_bad_rows_are_counted(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    good = {"a.jsonl": b'\n{"text": "good"}\n'}.get(name, b"")
    _, dropped = read(corpus(written(tmp_path, name, data + good)))
    assert dropped == {reason: 1}


@pytest.mark.bad_input
@pytest.mark.parametrize("value", ["NaN", "Infinity", "null", '""'])
def test_an_id_that_is_none_is_counted(tmp_path: Path, value: str) -> None:
    _, dropped = read(corpus(written(tmp_path, "a.jsonl", b'{"text": "x", "n": %s}' % value.encode()), id="n"))
    assert dropped == {"missing_id": 1}


def test_a_json_file_may_be_an_array_lines_or_objects_one_after_another(tmp_path: Path) -> None:
    for data in (
        b'\xef\xbb\xbf [ {"text":"a"} ,{"text":"b"} ] \n',
        b'{"text":"a"}\r\n\r\n{"text":"b"}',
        b'{\n"text":"a"\n}\n{"text":\n"b"}',
    ):
        assert texts(corpus(written(tmp_path, "a.json", data))) == {"a.json:0": "a", "a.json:1": "b"}
    for data in (b"", b"[]", b" [ ]\n"):
        assert read(corpus(written(tmp_path, "a.json", data))) == ([], {})


def test_huge_fields_lines_and_objects_are_read(tmp_path: Path) -> None:
    huge = "x\n" * 2_000_000
    for format in ("jsonl", "json", "csv", "tsv"):
        data = WRITE[format][1]([{"text": huge, "n": "1"}, {"text": "small", "n": "2"}])
        assert list(texts(corpus(written(tmp_path, f"a{WRITE[format][0]}", data))).values()) == [huge, "small"]


def test_separated_values_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    data = '\ufefftext,id\r\n007,1\r\n\r\nNaN,2\r\n"a ""b"",\r\nc",3\r\n2024-01-01,4'.encode()
    found = texts(corpus(written(tmp_path, "a.csv", data), id="id"))
    assert found == {"1": "007", "2": "NaN", "3": 'a "b",\r\nc', "4": "2024-01-01"}


@pytest.mark.bad_input
@pytest.mark.parametrize("compression", [None, *COMPRESS])
@pytest.mark.parametrize("format", WRITE)
def test_any_damage_is_an_error_that_names_the_file_or_a_count(
    tmp_path: Path, format: FileFormat, compression: str | None
) -> None:
    """Bytes cut out, changed or added anywhere: no exception but the user's, and the file's name in it."""
    end, compress = COMPRESS[compression] if compression else ("", bytes)
    whole = compress(content(format))
    path = tmp_path / f"a{WRITE[format][0]}{end}"

    @settings(
        max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.integers(0, len(whole)), st.integers(0, 40), st.binary(max_size=20))
    def damaged(start: int, length: int, instead: bytes) -> None:
        path.write_bytes(whole[:start] + instead + whole[start + length :])
        message = str(path)
        try:
            read(corpus(path))
        except UserError as error:
            message = str(error)
        assert str(path) in message

    damaged()


MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
COLUMNS: dict[str, tuple[pa.Array, dict[str, str]]] = {
    "text": (pa.array(["abc", "ä"]), {}),
    "large text": (pa.array(["abc", "ä"], pa.large_string()), {}),
    "text view": (pa.array(["abc", "more than twelve bytes"], pa.string_view()), {}),
    "bytes": (pa.array([b"abc", b"d"]), {}),
    "dictionary": (pa.array(["abc", "ä", "abc"]).dictionary_encode(), {}),
    "list": (pa.array([CHAT, CHAT[:1]], pa.list_(MESSAGE)), {"messages": "chat"}),
    "large list": (pa.array([CHAT, CHAT[:1]], pa.large_list(MESSAGE)), {"messages": "chat"}),
    "list view": (pa.array([CHAT, CHAT[:1]], pa.list_view(MESSAGE)), {"messages": "chat"}),
    "fixed list": (pa.array([CHAT, CHAT], pa.list_(MESSAGE, 2)), {"messages": "chat"}),
    "map": (
        pa.array(
            [[CHAT[0] | {"x": [("a", "b")]}]],
            pa.list_(pa.struct([*MESSAGE, ("x", pa.map_(pa.string(), pa.string()))])),
        ),
        {"messages": "chat"},
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("column", COLUMNS)
def test_an_arrow_file_whose_offsets_point_elsewhere_does_not_end_the_process(tmp_path: Path, column: str) -> None:
    """Any of its 32-bit words is another one: pyarrow reads memory where the offsets of a batch point."""
    values, settings = COLUMNS[column]
    path, table = tmp_path / "a.arrow", pa.table({settings.get("messages", "text"): values})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    whole = path.read_bytes()
    assert len(read(corpus(path, **settings))[0]) == len(values)
    messages: list[str] = []
    for start in range(0, len(whole) - 3, 4):
        path.write_bytes(whole[:start] + b"\xf0\xff\xff\x7f" + whole[start + 4 :])
        try:
            read(corpus(path, **settings))
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert [message for message in messages if str(path) not in message] == []
