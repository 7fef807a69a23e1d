"""A dataset: a folder of Parquet shards, a record beside each shard, and a manifest that is written last.

A shard without a record does not exist, a shard with one is complete, and a dataset is complete once it has a manifest.
A run that was killed anywhere is resumed by writing the shards that have no record. Everything is written once: if two
runs write at once, the first to publish a shard wins and the other continues with that shard, since the bytes may
differ (scores from a GPU, another version of Arrow) though the identity does not. Every read compares the shard's
checksum: a flipped bit may decode to other numbers, and hashing takes a fraction of the time of decoding.
"""

import builtins
import gc
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from storage.errors import OtherFormatError, UserError
from storage.fingerprints import as_json, stored_name
from storage.lease import marked_as_writer
from storage.replacement import replacement_url
from storage.schemas import FORMAT_VERSION, MANIFEST, Kind, schema_of
from storage.urls import absolute_url, join_url, list_names, overwrite, publish, read_bytes

_RECORDS_AT_ONCE = 16
_SPLIT = (pa.int32(), pa.float32(), pa.float64())
_LISTED_FROM = 1000
"""From this number of shards on, records are looked up in a listing: an object store lists 1,000 names per request."""
_RECORD_FILE = re.compile(r"shard-(\d{5,})\.json")

Stored = TypeVar("Stored")
Read = TypeVar("Read")


class StoredModel(BaseModel):
    """A model that is stored as JSON beside the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(), indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The record of a published shard."""

    # no model: a manifest has up to a hundred thousand of these, which are read in half the time and less memory
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    rows: int
    bytes: int
    sha256: str
    counts: dict[str, int]
    """What the stage counted: tokens, chunks, …"""
    dropped: dict[str, int]
    """The number of examples (or other things) lost, by reason."""

    def to_json(self) -> "builtins.bytes":
        """Return what `StoredModel.to_json` would, ten times as fast: verification compares every record."""
        members = f'"bytes": {self.bytes:d},\n "counts": {_members(self.counts)},\n "dropped": {_members(self.dropped)}'
        return f'{{\n {members},\n "rows": {self.rows:d},\n "sha256": {_quoted(self.sha256)}\n}}\n'.encode()


def _members(counts: Mapping[str, int]) -> str:
    lines = ",\n".join(f"  {_quoted(name)}: {count:d}" for name, count in sorted(counts.items()))
    return f"{{\n{lines}\n }}" if lines else "{}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Manifest(StoredModel):
    """The manifest of a complete dataset."""

    format_version: int
    kind: Kind
    name: str
    identity: dict[str, Any]
    """Everything that decides the bytes: configuration, fingerprints of inputs, contents, stage version."""
    shards: tuple[ShardRecord, ...]
    rows: int
    bytes: int
    counts: dict[str, int]
    dropped: dict[str, int]
    provenance: dict[str, Any] = Field(default_factory=dict)
    """What decides no byte: the run's whole configuration, package versions, commit."""

    @property
    def stored_bytes(self) -> int:
        """The bytes of all files of the dataset: its shards, their records and this manifest."""
        records = [record.to_json() for record in self.shards]
        sizes, lines = sum(map(len, records)), sum(record.count(b"\n") for record in records)
        # the manifest has each record too, its lines two spaces further in, with a comma or the bracket's line break
        listed = sizes + 2 * lines + len(records) + 1 if records else 0
        return self.bytes + sizes + listed + len(self.model_copy(update={"shards": ()}).to_json())


@dataclass(frozen=True)
class Dataset:
    """A dataset by its location and identity, whether or not anything is written yet.

    `name` is the label and the identity's fingerprint, so that two configurations never share a folder.
    """

    root: str
    kind: Kind
    label: str
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)
    rewritten: frozenset[int] | None = field(default=None, compare=False, kw_only=True)
    """The shards that a repair writes again, into a replacement, as it does the manifest; None outside of a repair."""

    @property
    def name(self) -> str:
        return stored_name(self.kind, self.label, self.identity)

    @property
    def url(self) -> str:
        return join_url(self.root, self.kind, self.name)

    def shard_url(self, shard: int) -> str:
        return join_url(self._folder_of(shard), shard_file(shard))

    def record_url(self, shard: int) -> str:
        return join_url(self._folder_of(shard), shard_file(shard, "json"))

    def _folder_of(self, shard: int) -> str:
        return replacement_url(self.url) if shard in (self.rewritten or ()) else self.url

    @property
    def _manifest_folder(self) -> str:
        return self.url if self.rewritten is None else replacement_url(self.url)

    def being_written(self) -> AbstractContextManager[None]:
        """Keep the dataset from being deleted while this process writes shards of it, as others may do too.

        A complete dataset is not written.
        """
        return nullcontext() if self.manifest() else marked_as_writer(self.url)

    def record(self, shard: int) -> ShardRecord | None:
        """Read the record of a shard; None if the shard is not complete. Raises UserError if the record is damaged."""
        content = read_bytes(self.record_url(shard))
        return None if content is None else parse_stored(ShardRecord, self.record_url(shard), content)

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Return those of these shards that have no record. Many are looked up in one listing, without being read."""
        shards = list(shards)
        if len(shards) < _LISTED_FROM:
            return [s for s, record in zip(shards, self._read(self.record, shards), strict=True) if record is None]
        recorded = self.recorded()
        return [shard for shard in shards if shard not in recorded]

    def recorded(self) -> set[int]:
        """List the shards that have a record; whether it can be read is found out by those who need its content."""
        again = self.rewritten or frozenset()
        recorded = _recorded(self.url) - again
        return recorded | (_recorded(replacement_url(self.url)) & again) if again else recorded

    def required_records(self, shards: Iterable[int]) -> list[ShardRecord]:
        """Read the records of these shards. Raises UserError if one is not complete."""
        return self._read(self._required_record, list(shards))

    def known_records(self, shards: Iterable[int]) -> list[ShardRecord]:
        """Return the records of these shards: of a complete dataset those in its manifest, or else those beside them.

        Raises UserError if a shard is not complete.
        """
        manifest: Manifest | None = self.__dict__.get("_complete") or self.manifest()
        return [manifest.shards[shard] for shard in shards] if manifest else self.required_records(shards)

    def _read(self, read: Callable[[int], Read], shards: Sequence[int]) -> list[Read]:
        # an object store answers slowly, and there may be thousands of shards: each thread reads some at a time
        size = 1 + len(shards) // (8 * _RECORDS_AT_ONCE)
        parts = [shards[start : start + size] for start in range(0, len(shards), size)]
        with ThreadPoolExecutor(_RECORDS_AT_ONCE) as pool:
            return [item for part in pool.map(lambda part: [read(shard) for shard in part], parts) for item in part]

    def manifest(self) -> Manifest | None:
        """Read the manifest, or return None if the dataset is not complete.

        Raises UserError if it is damaged, of another format, or belongs to another dataset.
        """
        manifest = load_manifest(self._manifest_folder)
        expected = (self.kind, self.name, as_json(self.identity))
        if manifest and (manifest.kind, manifest.name, manifest.identity) != expected:
            raise UserError(
                f"{self.url}: its manifest belongs to {manifest.kind}/{manifest.name}, or was edited: "
                f"don't move or edit datasets; `alm delete {self.url}` and run the stage again"
            )
        self.__dict__["_complete"] = manifest
        return manifest

    def complete_manifest(self) -> Manifest:
        """Return the manifest as it was last read: a complete dataset does not change, and many ask for it.

        Raises UserError if the dataset is not complete.
        """
        manifest: Manifest | None = self.__dict__.get("_complete") or self.manifest()
        if manifest is None:
            raise UserError(f"{self.url}: not complete (it has no manifest): run the stage that writes it")
        return manifest

    def __getstate__(self) -> dict[str, Any]:
        # a manifest of many shards takes megabytes, which every task of another process would be sent
        return {name: value for name, value in self.__dict__.items() if name != "_complete"}

    def write_shard(
        self,
        shard: int,
        columns: Mapping[str, Any],
        counts: Mapping[str, int],
        dropped: Mapping[str, int] | None = None,
    ) -> ShardRecord:
        """Publish a shard and then its record, unless another run was first. Returns the record that is stored then.

        The columns are those of the kind's schema, with or without the optional ones.
        """
        table = pa.table(dict(columns), schema=schema_of(self.kind, columns))
        content = self._publish_shard(shard, table)
        record = ShardRecord(
            rows=table.num_rows,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            counts=dict(sorted(counts.items())),
            dropped=dict(sorted((dropped or {}).items())),
        )
        return parse_stored(ShardRecord, self.record_url(shard), publish(self.record_url(shard), record.to_json()))

    def _publish_shard(self, shard: int, table: pa.Table) -> bytes:
        """Publish the shard and return the bytes that are stored afterward."""
        content = encode_parquet(table)
        stored = publish(self.shard_url(shard), content)
        if stored == content or _holds_rows(stored, table):
            return stored
        overwrite(self.shard_url(shard), content)  # half a shard, which a store without atomic writes kept after a kill
        return content

    def finish(self, shards: int, dropped: Mapping[str, int] | None = None) -> Manifest:
        """Publish the manifest of a dataset of `shards` shards; `dropped` counts losses outside any single shard."""
        return self.publish_manifest(self.required_records(range(shards)), dropped)

    def publish_manifest(self, records: Sequence[ShardRecord], dropped: Mapping[str, int] | None = None) -> Manifest:
        """Publish the manifest, as `finish` does, with the records of all shards, which were just read."""
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            kind=self.kind,
            name=self.name,
            identity=as_json(self.identity),
            shards=tuple(records),
            rows=sum(record.rows for record in records),
            bytes=sum(record.bytes for record in records),
            counts=_add([record.counts for record in records]),
            dropped=_add([*(record.dropped for record in records), dropped or {}]),
            provenance=dict(self.provenance),
        )
        url = join_url(self._manifest_folder, MANIFEST)
        return parse_stored(Manifest, url, publish(url, manifest.to_json()))

    def _required_record(self, shard: int) -> ShardRecord:
        record = self.record(shard)
        if record is None:
            raise UserError(f"{self.shard_url(shard)}: not complete (it has no record): run its stage again")
        return record

    def _expected_record(self, shard: int) -> ShardRecord:
        """Return the record that a shard is compared with: if the dataset is complete, the one in the manifest.

        A shard that was replaced by another dataset's, together with its record, would match the record beside it.
        """
        manifest: Manifest | None = self.__dict__.get("_complete") or self.manifest()
        if manifest is None:
            return self._required_record(shard)
        if shard >= len(manifest.shards):
            raise UserError(f"{self.shard_url(shard)}: not in this dataset, which has {len(manifest.shards)} shards")
        return manifest.shards[shard]

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the shard's rows, with all columns or only `columns`.

        Raises UserError if the shard has no record, or its bytes do not match the record.
        """
        record, url = self._expected_record(shard), self.shard_url(shard)
        content = read_bytes(url)
        if content is None:
            raise UserError(f"{url}: is missing although it has a record: {_repair_hint(self.url)}")
        if len(content) != record.bytes:
            raise UserError(
                f"{url}: is {len(content)} bytes long, but {record.bytes} in its record: {_repair_hint(self.url)}"
            )
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise UserError(
                f"{url}: is damaged or from another dataset (its SHA-256 differs from its record): "
                f"{_repair_hint(self.url)}"
            )
        return pq.read_table(pa.BufferReader(content), columns=None if columns is None else list(columns))


def shard_file(shard: int, ending: str = "parquet") -> str:
    return f"shard-{shard:05d}.{ending}"


def _recorded(url: str) -> set[int]:
    """Return the shards in a folder that have a record."""
    return {int(match[1]) for name in list_names(url) if (match := _RECORD_FILE.fullmatch(name))}


def _repair_hint(url: str) -> str:
    # as long as a manifest exists, the stage takes the dataset for complete and writes nothing
    return (
        f"`alm repair {url}` writes it again; or delete the shard, its .json and the dataset's manifest.json by hand "
        "and run the stage again"
    )


def read_aligned(
    datasets: Mapping[str, Dataset], shard: int, columns: Mapping[str, Sequence[str]]
) -> dict[str, pa.Table]:
    """Read the same shard of several datasets, by name, and check that their rows are the same examples.

    `columns` maps each dataset to read to its columns. Raises UserError if ids differ.
    """
    tables = {name: datasets[name].read_shard(shard, ["id", *wanted]) for name, wanted in columns.items()}
    first, *others = tables
    for name in others:
        if not tables[name]["id"].equals(tables[first]["id"]):
            raise UserError(
                f"shard {shard} contains different examples in {datasets[name].url} and {datasets[first].url}: "
                "read datasets whose manifests name the same inputs"
            )
    return tables


def encode_parquet(table: pa.Table) -> bytes:
    """Encode a shard: zstd over the encodings that were smallest on real text.

    Token ids and hashes are plain, and kinds, which are nearly all the same; other numbers of four and eight bytes are
    split by byte, without a dictionary, which would inflate them. The zstd level is 1: level 3 takes 1.5 times as long,
    makes token ids 5 % smaller and nothing else. Scores have level 9, which makes them 5 % smaller in a time that is
    negligible beside the teacher's. There is one row group, since a shard is read as a whole.
    """
    paths = {field.name: f"{field.name}.list.element" for field in table.schema if pa.types.is_list(field.type)}
    items = {name: table.schema.field(name).type.value_type for name in paths}
    split = [paths[name] for name, item in items.items() if name != "token_ids" and item in _SPLIT]
    without = [paths[name] for name, item in items.items() if name in ("token_ids", "kinds") or item == pa.bool_()]
    without += [paths.get(of.name, of.name) for of in table.schema if items.get(of.name, of.type) == pa.uint64()]
    levels = {paths.get(name, name): 9 if items.get(name) == pa.float32() else 1 for name in table.column_names}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=levels,
        use_dictionary=[path for path in levels if path not in (*split, *without)],
        use_byte_stream_split=split or False,
        row_group_size=max(1, table.num_rows),
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def _holds_rows(content: bytes, table: pa.Table) -> bool:
    """Return whether these bytes are a whole shard with the table's rows; numbers may differ."""
    try:
        stored = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return False
    return bool(stored.schema.equals(table.schema) and stored["id"].equals(table["id"]))


def load_manifest(url: str) -> Manifest | None:
    """Read the manifest of the dataset in a folder, or return None if the dataset is not complete.

    Raises UserError if the manifest is damaged or of another format.
    """
    content = read_bytes(join_url(url, MANIFEST))
    return None if content is None else parse_stored(Manifest, join_url(url, MANIFEST), content)


def parse_stored(model: type[Stored], url: str, content: bytes) -> Stored:
    """Parse what was stored at `url`. Raises UserError if it is damaged, OtherFormatError if its format differs."""
    collects = gc.isenabled()
    gc.disable()  # it would look at all records of a manifest again and again while they are made
    try:
        values = parse_json(content)
        version = values.get("format_version", FORMAT_VERSION) if isinstance(values, dict) else FORMAT_VERSION
        if version != FORMAT_VERSION:  # checked before the model's fields, which may differ too
            raise OtherFormatError(
                f"{url}: was written in format {version}, and this version of alm-pipeline reads format "
                f"{FORMAT_VERSION}: use the version that wrote it, or run its stage again, which writes a new folder"
            )
        kept: Any = model
        validated: Stored = _validator(kept).validate_python(values)
        return validated
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'the document'}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    finally:
        if collects:
            gc.enable()
    raise UserError(
        f"{url}: is damaged ({problem}): `alm repair {url.rsplit('/', 1)[0]}` fixes it; or delete it and the folder's "
        "manifest.json by hand and run the stage again"
    )


@cache
def _validator(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def parse_json(content: bytes) -> Any:
    """Parse stored JSON. Raises ValueError for anything else: NaN, bytes that are not UTF-8, endless nesting."""
    with suppress(ValueError):
        return from_json(content, allow_inf_nan=False)
    try:  # a slower parser, whose errors are clearer
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _add(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def open_dataset(url: str) -> Dataset:
    """Open a complete dataset by the URL of its folder. Raises UserError if it is not complete or was renamed."""
    manifest = load_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: not a complete dataset (it has no manifest.json); `alm list ROOT` lists all")
    folder = absolute_url(url)
    dataset = Dataset(folder.rsplit("/", 2)[0], manifest.kind, manifest.name.rpartition("-")[0], manifest.identity)
    if dataset.name != manifest.name or dataset.url != folder:
        raise UserError(f"{url}: its manifest belongs to {manifest.kind}/{manifest.name}: don't move or edit datasets")
    return dataset
