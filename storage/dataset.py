"""A dataset: a folder of Parquet shards, a record beside each, and a manifest that is written last.

What has no record does not exist, what has one is complete, and a dataset is complete once its manifest is
there. A run that was killed anywhere is resumed by writing the shards that have no record; since a shard's bytes are
decided by the dataset's identity, writing one twice, even from two processes at once, does no harm.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import UserError
from storage.identity import fingerprint
from storage.schemas import FORMAT_VERSION, SCHEMAS, Kind
from storage.urls import join_url, list_names, publish, read_bytes

Model = TypeVar("Model", bound=BaseModel)


class Stored(BaseModel):
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


@dataclass(frozen=True)
class Dataset:
    """A dataset by its place and identity, whether or not anything is written yet.

    `name` is the label with the identity's fingerprint, so two configurations never share a folder.
    """

    root: str
    kind: Kind
    label: str
    identity: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint({"kind": self.kind, "format": FORMAT_VERSION, **self.identity})

    @property
    def name(self) -> str:
        return f"{self.label}-{self.fingerprint}"

    @property
    def url(self) -> str:
        return join_url(self.root, self.kind, self.name)

    def shard_url(self, shard: int) -> str:
        return join_url(self.url, f"shard-{shard:05d}.parquet")

    def record(self, shard: int) -> Record | None:
        """The record of a shard, or None when the shard is not complete."""
        url = join_url(self.url, f"shard-{shard:05d}.json")
        content = read_bytes(url)
        return None if content is None else _parse(Record, url, content)

    def manifest(self) -> Manifest | None:
        """The manifest, or None when the dataset is not complete."""
        return load_manifest(self.url)

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
        """Publish a shard and then its record."""
        table = pa.table(dict(columns), schema=SCHEMAS[self.kind])
        content = encode_parquet(table)
        record = Record(
            rows=table.num_rows,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            counts=dict(sorted(counts.items())),
            dropped=dict(sorted((dropped or {}).items())),
        )
        publish(self.shard_url(shard), content)
        publish(join_url(self.url, f"shard-{shard:05d}.json"), record.to_json())
        return record

    def finish(self, shards: int, dropped: Mapping[str, int] | None = None) -> Manifest:
        """Publish the manifest of a dataset of so many shards; `dropped` adds what no single shard lost."""
        records = [self._required_record(shard) for shard in range(shards)]
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            kind=self.kind,
            name=self.name,
            identity=json.loads(json.dumps(self.identity)),
            shards=tuple(records),
            rows=sum(record.rows for record in records),
            bytes=sum(record.bytes for record in records),
            counts=_add([record.counts for record in records]),
            dropped=_add([*(record.dropped for record in records), dropped or {}]),
        )
        publish(join_url(self.url, "manifest.json"), manifest.to_json())
        return manifest

    def _required_record(self, shard: int) -> Record:
        record = self.record(shard)
        if record is None:
            raise UserError(f"{self.shard_url(shard)}: not complete (it has no record): run its stage again")
        return record

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The shard's rows. Raises UserError when the shard is not what its record says."""
        record, url = self._required_record(shard), self.shard_url(shard)
        content = read_bytes(url)
        found = "missing" if content is None else f"{len(content)} bytes long"
        if content is None or len(content) != record.bytes:
            raise UserError(f"{url}: is {found}, its record says {record.bytes} bytes: {_MEND}")
        try:
            table = pq.read_table(io.BytesIO(content), columns=list(columns) if columns else None)
        except pa.ArrowException as error:
            raise UserError(f"{url}: is damaged ({error}): {_MEND}") from error
        return table


_MEND = "delete the shard and its .json, and run the stage again"


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
                f"shard {shard} holds other examples in {datasets[name].url} than in {datasets[first].url}: {_MEND}"
            )
    return tables


def encode_parquet(table: pa.Table) -> bytes:
    """The bytes of a shard: zstd over the encodings that were smallest on real text.

    Token ids are plain; other numbers are split by byte, without a dictionary, which would inflate them.
    """
    lists = {field.name: f"{field.name}.list.element" for field in table.schema if pa.types.is_list(field.type)}
    split = [lists[name] for name in lists if name not in ("token_ids", "kinds")]
    whole = [name for name in table.column_names if name not in lists] + [lists[n] for n in lists if n == "kinds"]
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=9,
        use_dictionary=whole,
        use_byte_stream_split=split or False,
    )
    return sink.getvalue()


def load_manifest(url: str) -> Manifest | None:
    """The manifest of the dataset in a folder, or None when it is not complete.

    Raises UserError when the manifest is damaged or of another format.
    """
    content = read_bytes(join_url(url, "manifest.json"))
    if content is None:
        return None
    manifest = _parse(Manifest, f"{url}/manifest.json", content)
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(
            f"{url}: written in format {manifest.format_version}, this program reads {FORMAT_VERSION}: "
            "use the version that wrote it, or run the stage again"
        )
    return manifest


def _parse(model: type[Model], url: str, content: bytes) -> Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"{url}: is damaged or of another version: {error.errors()[0]['msg']}") from error


def _add(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def list_datasets(root: str) -> list[tuple[Kind, str, Manifest | None]]:
    """What is stored under a root: kind, folder's URL and manifest (None while it is not complete)."""
    found = []
    for kind in Kind:
        for name in list_names(join_url(root, kind)):
            url = join_url(root, kind, name)
            found.append((kind, url, load_manifest(url)))
    return found


def open_dataset(url: str) -> Dataset:
    """A complete dataset by its folder's URL. Raises UserError when it is none, or not the one its name says."""
    manifest = load_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: no complete dataset (it has no manifest.json); `alm describe ROOT` lists them")
    root = url.rstrip("/").rsplit("/", 2)[0]
    label, _, suffix = manifest.name.rpartition("-")
    dataset = Dataset(root, manifest.kind, label, manifest.identity)
    if dataset.fingerprint != suffix or dataset.url != url.rstrip("/"):
        raise UserError(f"{url}: its manifest belongs to {manifest.kind}/{manifest.name}: don't move or edit datasets")
    return dataset
