"""A dataset: a folder of Parquet shards, a record beside each, and a manifest that is written last.

What has no record does not exist, what has one is complete, and a dataset is complete once its manifest is
there. A run that was killed anywhere is resumed by writing the shards that have no record. Everything is written once:
of two runs at once, the first to publish a shard wins, and the other goes on with that one, since the bytes may differ
(scores from a GPU, another version of Arrow) though the identity does not. Every reading compares the shard's checksum:
a flipped bit may decode to other numbers, and hashing takes a fraction of decoding.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import OtherFormatError, UserError
from storage.fingerprints import plain, stored_name
from storage.schemas import FORMAT_VERSION, MANIFEST, Kind, schema_of
from storage.urls import absolute_url, join_url, overwrite, publish, read_bytes

_RECORDS_AT_ONCE = 16

Model = TypeVar("Model", bound=BaseModel)
Read = TypeVar("Read")


class Stored(BaseModel):
    """What is kept as JSON beside the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(), indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


class Record(Stored):
    """What is known of a published shard."""

    rows: int
    bytes: int
    sha256: str
    counts: dict[str, int]
    """what the stage counted: tokens, chunks, ..."""
    dropped: dict[str, int]
    """examples, or what else was lost, by reason"""


class Manifest(Stored):
    """What a complete dataset is made of."""

    format_version: int
    kind: Kind
    name: str
    identity: dict[str, Any]
    """everything that decides the bytes: configuration, inputs' fingerprints, contents, stage version"""
    shards: tuple[Record, ...]
    rows: int
    bytes: int
    counts: dict[str, int]
    dropped: dict[str, int]
    provenance: dict[str, Any] = Field(default_factory=dict)
    """what decides no byte: the run's whole configuration, versions of packages, commit"""


@dataclass(frozen=True)
class Dataset:
    """A dataset by its place and identity, whether or not anything is written yet.

    `name` is the label with the identity's fingerprint, so two configurations never share a folder.
    """

    root: str
    kind: Kind
    label: str
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def name(self) -> str:
        return stored_name(self.kind, self.label, self.identity)

    @property
    def url(self) -> str:
        return join_url(self.root, self.kind, self.name)

    def shard_url(self, shard: int) -> str:
        return join_url(self.url, f"shard-{shard:05d}.parquet")

    def record_url(self, shard: int) -> str:
        return join_url(self.url, f"shard-{shard:05d}.json")

    def record(self, shard: int) -> Record | None:
        """The record of a shard, or None when the shard is not complete. Raises UserError when it is damaged."""
        content = read_bytes(self.record_url(shard))
        return None if content is None else parse_stored(Record, self.record_url(shard), content)

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Of these shards, those that are not complete."""
        shards = list(shards)
        return [shard for shard, record in zip(shards, self._read(self.record, shards), strict=True) if record is None]

    def required_records(self, shards: Iterable[int]) -> list[Record]:
        """The records of these shards. Raises UserError where one is not complete."""
        return self._read(self._required_record, shards)

    def _read(self, read: Callable[[int], Read], shards: Iterable[int]) -> list[Read]:
        # a store takes its time to answer, and there may be thousands of shards
        with ThreadPoolExecutor(_RECORDS_AT_ONCE) as pool:
            return list(pool.map(read, shards))

    def manifest(self) -> Manifest | None:
        """The manifest, or None when the dataset is not complete.

        Raises UserError when it is damaged, of another format or another dataset's.
        """
        manifest = load_manifest(self.url)
        own = (self.kind, self.name, plain(self.identity))
        if manifest and (manifest.kind, manifest.name, manifest.identity) != own:
            raise UserError(
                f"{self.url}: its manifest belongs to {manifest.kind}/{manifest.name}, or was edited: "
                f"don't move or edit datasets; `alm delete {self.url}` and run the stage again"
            )
        return manifest

    def complete_manifest(self) -> Manifest:
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.url}: not complete (it has no manifest): run the stage that writes it")
        return manifest

    def write_shard(
        self,
        shard: int,
        columns: Mapping[str, Any],
        counts: Mapping[str, int],
        dropped: Mapping[str, int] | None = None,
    ) -> Record:
        """Publish a shard and then its record, unless another run was first; the record that is there then.

        The columns are those of the kind's schema, with optional ones or without.
        """
        table = pa.table(dict(columns), schema=schema_of(self.kind, columns))
        content = self._publish_shard(shard, table)
        record = Record(
            rows=table.num_rows,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            counts=dict(sorted(counts.items())),
            dropped=dict(sorted((dropped or {}).items())),
        )
        return parse_stored(Record, self.record_url(shard), publish(self.record_url(shard), record.to_json()))

    def _publish_shard(self, shard: int, table: pa.Table) -> bytes:
        """The shard's bytes, as they are there afterwards."""
        content = encode_parquet(table)
        standing = publish(self.shard_url(shard), content)
        if standing == content or _holds_rows(standing, table):
            return standing
        overwrite(self.shard_url(shard), content)  # what a store without atomic writes left of a killed run
        return content

    def finish(self, shards: int, dropped: Mapping[str, int] | None = None) -> Manifest:
        """Publish the manifest of a dataset of so many shards; `dropped` adds what no single shard lost."""
        records = self.required_records(range(shards))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            kind=self.kind,
            name=self.name,
            identity=plain(self.identity),
            shards=tuple(records),
            rows=sum(record.rows for record in records),
            bytes=sum(record.bytes for record in records),
            counts=_add([record.counts for record in records]),
            dropped=_add([*(record.dropped for record in records), dropped or {}]),
            provenance=dict(self.provenance),
        )
        url = join_url(self.url, MANIFEST)
        return parse_stored(Manifest, url, publish(url, manifest.to_json()))

    def _required_record(self, shard: int) -> Record:
        record = self.record(shard)
        if record is None:
            raise UserError(f"{self.shard_url(shard)}: not complete (it has no record): run its stage again")
        return record

    def _record_to_hold(self, shard: int) -> Record:
        """The record that a shard is compared with: of a complete dataset the manifest's own.

        A shard that was swapped for another dataset's together with its record would pass the one beside it.
        """
        # kept once it is there: a complete dataset stays as it is, and its readers ask for every shard
        manifest: Manifest | None = self.__dict__.get("_complete") or self.manifest()
        if manifest is None:
            return self._required_record(shard)
        self.__dict__["_complete"] = manifest
        if shard >= len(manifest.shards):
            raise UserError(f"{self.shard_url(shard)}: not of this dataset, which has {len(manifest.shards)} shards")
        return manifest.shards[shard]

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The shard's rows, with all columns or those asked for.

        Raises UserError when the shard has no record, or its bytes are not those that the record tells of.
        """
        record, url = self._record_to_hold(shard), self.shard_url(shard)
        content = read_bytes(url)
        if content is None:
            raise UserError(f"{url}: is missing, though it has a record: {_mend(self.url)}")
        if len(content) != record.bytes:
            raise UserError(f"{url}: is {len(content)} bytes long, its record says {record.bytes}: {_mend(self.url)}")
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise UserError(
                f"{url}: is damaged, or another dataset's (its SHA-256 is not its record's): {_mend(self.url)}"
            )
        return pq.read_table(pa.BufferReader(content), columns=None if columns is None else list(columns))


def _mend(url: str) -> str:
    # with a manifest, the stage would take the dataset for complete and write nothing
    return (
        f"`alm repair {url}` writes it again; by hand: delete the shard, its .json and the dataset's manifest.json, "
        "and run the stage again"
    )


def read_aligned(
    datasets: Mapping[str, Dataset], shard: int, columns: Mapping[str, Sequence[str]]
) -> dict[str, pa.Table]:
    """The same shard of several datasets by name, after checking that their rows are the same examples.

    `columns` says which datasets and columns. Raises UserError where ids disagree.
    """
    tables = {name: datasets[name].read_shard(shard, ["id", *wanted]) for name, wanted in columns.items()}
    first, *others = tables
    for name in others:
        if not tables[name]["id"].equals(tables[first]["id"]):
            raise UserError(
                f"shard {shard} holds other examples in {datasets[name].url} than in {datasets[first].url}: "
                "they come from different examples; read datasets whose manifests name the same inputs"
            )
    return tables


def encode_parquet(table: pa.Table) -> bytes:
    """The bytes of a shard: zstd over the encodings that were smallest on real text.

    Token ids are plain; other four-byte numbers are split by byte, without a dictionary, which would inflate them.
    Level 1: level 3 takes half as long again for a twentieth less of the token ids, and for no less of everything else;
    but 9 for scores, of which it takes a twentieth off in a time that is nothing beside the teacher's. One row group,
    since a shard is read whole.
    """
    paths = {field.name: f"{field.name}.list.element" for field in table.schema if pa.types.is_list(field.type)}
    items = {name: table.schema.field(name).type.value_type for name in paths}
    split = [paths[name] for name, item in items.items() if name != "token_ids" and item in (pa.int32(), pa.float32())]
    without = [paths[name] for name, item in items.items() if name == "token_ids" or item == pa.bool_()]
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
    """Whether these bytes are a whole shard of the table's rows; numbers may differ."""
    try:
        found = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return False
    return bool(found.schema.equals(table.schema) and found["id"].equals(table["id"]))


def load_manifest(url: str) -> Manifest | None:
    """The manifest of the dataset in a folder, or None when it is not complete.

    Raises UserError when the manifest is damaged or of another format.
    """
    content = read_bytes(join_url(url, MANIFEST))
    return None if content is None else parse_stored(Manifest, join_url(url, MANIFEST), content)


def parse_stored(model: type[Model], url: str, content: bytes) -> Model:
    """What was stored at `url`. Raises UserError when it is damaged, or of another format."""
    try:
        plain = json.loads(content)
        version = plain.get("format_version", FORMAT_VERSION) if isinstance(plain, dict) else FORMAT_VERSION
        if version != FORMAT_VERSION:  # its fields may be others, too
            raise OtherFormatError(
                f"{url}: written in format {version}, this program reads {FORMAT_VERSION}: "
                "use the version that wrote it, or run the stage again under another root"
            )
        return model.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    except ValueError as error:
        problem = str(error)
    raise UserError(
        f"{url}: is damaged ({problem}): `alm repair {url.rsplit('/', 1)[0]}` mends it; by hand: delete it and the "
        "folder's manifest.json, and run the stage again"
    )


def _add(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def open_dataset(url: str) -> Dataset:
    """A complete dataset by its folder's URL. Raises UserError when it is none, or not the one its name says."""
    manifest = load_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: no complete dataset (it has no manifest.json); `alm list ROOT` lists them")
    folder = absolute_url(url)
    dataset = Dataset(folder.rsplit("/", 2)[0], manifest.kind, manifest.name.rpartition("-")[0], manifest.identity)
    if dataset.name != manifest.name or dataset.url != folder:
        raise UserError(f"{url}: its manifest belongs to {manifest.kind}/{manifest.name}: don't move or edit datasets")
    return dataset
