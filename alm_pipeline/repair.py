"""Repair of a store: damaged data is written again with the configurations that the manifests hold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.provenance import stored_config
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, FolderManifest, StoredFolder, upload_again
from storage.upkeep.catalog import INVALID_MANIFEST, Catalog, CatalogEntry, open_entry
from storage.upkeep.verify import Damage, invalidate, verify, verify_entry
from storage.urls import remove

RunStage = Callable[[], object]


@dataclass(frozen=True)
class Repair:
    """The damages of a dataset or folder before and after a repair."""

    key: str
    damages: tuple[Damage, ...]
    remaining: tuple[Damage, ...]
    refused: str = ""
    """Why nothing was done; empty unless the repair was refused."""
    changed: bool = False
    """Whether the new bytes differ from those in the former manifest: other package versions, another processor."""


def repair(
    catalog: Catalog, keys: list[str], checksums: bool = False, config: AlmConfig | None = None
) -> Iterator[Repair]:
    """Verify these keys, inputs before what was made from them, and write again only what is damaged.

    Nothing is removed before it is known that its stage can write the same again. `config` is used instead of the
    manifests' configurations.
    """
    for key in (key for key in catalog.entries if key in keys):
        entry = open_entry(catalog.entries[key].url)
        if damages := tuple(verify_entry(entry, checksums)):
            try:
                _fix(catalog, entry, damages, config)
                changed = _checksums(entry) not in (None, _checksums(open_entry(entry.url)))
                yield Repair(key, damages, tuple(verify(entry.url, checksums)), changed=changed)
            except UserError as error:
                yield Repair(key, damages, damages, str(error))


def _checksums(entry: CatalogEntry) -> object:
    """Return the checksums of all shards or files in the manifest; None if there is no manifest."""
    if isinstance(entry.manifest, Manifest):
        return [record.sha256 for record in entry.manifest.shards]
    return entry.manifest and entry.manifest.files


def _fix(catalog: Catalog, entry: CatalogEntry, damages: Sequence[Damage], config: AlmConfig | None) -> None:
    if not any(damage.needs_rerun for damage in damages):
        invalidate(damages)
        return
    if _upload_copies(entry, damages):
        return
    _check_surroundings(catalog, entry, damages)
    run_stage = _find_stage(catalog, entry, config)
    invalidate(damages)
    run_stage()
    remove(entry.file(INVALID_MANIFEST))


def _upload_copies(entry: CatalogEntry, damages: Sequence[Damage]) -> bool:
    """Upload this machine's copies and return True, if it has all: training takes hours, an upload seconds."""
    names = [damage.url.rsplit("/", 1)[-1] for damage in damages if damage.needs_rerun]
    return isinstance(entry.manifest, FolderManifest) and upload_again(entry.root, entry.kind, entry.manifest, names)


def _check_surroundings(catalog: Catalog, entry: CatalogEntry, damages: Sequence[Damage]) -> None:
    """Raise UserError if an input is gone, or if a folder that is made again would include foreign files."""
    if gone := [key for key in catalog.inputs(entry.key).values() if key not in catalog.entries]:
        raise UserError(f"{entry.url}: was made from {gone[0]}, which no longer exists: run again from the start")
    foreign = [damage.url for damage in damages if not damage.is_repairable]
    if foreign and entry.kind in FOLDER_KINDS:
        raise UserError(
            f"{foreign[0]}: does not belong to the folder, which is made again as a whole: move it elsewhere first"
        )


def _find_stage(catalog: Catalog, entry: CatalogEntry, config: AlmConfig | None) -> RunStage:
    """Return the function that writes exactly this dataset.

    Raises UserError if no configuration is known, or if the known ones now make other datasets.
    """
    configs = [config] if config else [stored_config(stored, entry.url) for stored in _provenances(catalog, entry)]
    for candidate in configs or [stored_config({}, entry.url)]:
        if run_stage := stage_of(Pipeline(candidate, catalog.root), entry.key):
            return run_stage
    raise UserError(
        f"{entry.url}: its configuration now makes another dataset: the corpus, a tokenizer, a model or this program "
        "has changed since. Restore what it was made from, or `alm delete` it and run again"
    )


def _provenances(catalog: Catalog, entry: CatalogEntry) -> Iterator[dict[str, object]]:
    """Yield the provenance in its manifest, or, if that is lost, those of everything that was made from it."""
    if entry.provenance:
        yield dict(entry.provenance)
        return
    for other in catalog.entries.values():
        if other.provenance and entry.key in catalog.origins([other.key]):
            yield dict(other.provenance)


STAGES_OF_KIND: dict[str, list[tuple[Callable[[Pipeline], Dataset | StoredFolder | None], Callable[..., object]]]] = {
    "examples": [(lambda pipeline: pipeline.examples, Pipeline.shard)],
    "tokenizers": [(lambda pipeline: pipeline.made_tokenizer, Pipeline.train_tokenizer)],
    "tokens": [
        (lambda pipeline: pipeline.tokens("teacher"), lambda pipeline: pipeline.tokenize("teacher")),
        (lambda pipeline: pipeline.tokens("student"), lambda pipeline: pipeline.tokenize("student")),
    ],
    "alignments": [(lambda pipeline: pipeline.alignments, Pipeline.align)],
    "pair_biases": [(lambda pipeline: pipeline.stored_pair_biases, Pipeline.pair_biases)],
    "teacher_scores": [(lambda pipeline: pipeline.scores, Pipeline.score)],
    "students": [(lambda pipeline: pipeline.student, Pipeline.train)],
}
"""For each kind: what a pipeline writes of it, and the stage that writes it."""


def stage_of(pipeline: Pipeline, key: str) -> RunStage | None:
    """Return the stage of a pipeline that writes `kind/name`, or None if no stage does."""
    kind, _, name = key.partition("/")
    for output_of, stage in STAGES_OF_KIND[kind]:
        output = output_of(pipeline)
        if output and output.name == name:
            return partial(stage, pipeline)
    return None
