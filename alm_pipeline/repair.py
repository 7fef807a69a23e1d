"""Making again what is wrong in a store, by the configurations that its manifests hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.provenance import stored_config
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, FolderManifest, StoredFolder, upload_again
from storage.upkeep.catalog import INVALID_MANIFEST, Entry, Store, open_entry
from storage.upkeep.verify import Finding, invalidate, verify, verify_entry
from storage.urls import remove

Stage = Callable[[], object]


@dataclass(frozen=True)
class Repair:
    """What was wrong with a dataset or folder, and what still is."""

    key: str
    found: tuple[Finding, ...]
    left: tuple[Finding, ...]
    refused: str = ""
    """why nothing was done"""
    changed: bool = False
    """what was made again has other bytes than its manifest told of: another package's version, another processor"""


def repair(store: Store, keys: list[str], checksums: bool = False, config: AlmConfig | None = None) -> Iterator[Repair]:
    """Verify these, in an order in which what is read is mended first; make again just what is wrong.

    Nothing is removed before it is known that its stage can write the same again. `config` is for what no manifest
    holds a configuration of.
    """
    for key in (key for key in store.entries if key in keys):
        entry = open_entry(store.entries[key].url)
        if found := verify_entry(entry, checksums):
            try:
                _mend(store, entry, found, config)
                changed = _checksums(entry) not in (None, _checksums(open_entry(entry.url)))
                yield Repair(key, tuple(found), tuple(verify(entry.url, checksums)), changed=changed)
            except UserError as error:
                yield Repair(key, tuple(found), tuple(found), str(error))


def _checksums(entry: Entry) -> object:
    """Of all shards or files, as the manifest tells; None where there is none."""
    if isinstance(entry.manifest, Manifest):
        return [record.sha256 for record in entry.manifest.shards]
    return entry.manifest and entry.manifest.files


def _mend(store: Store, entry: Entry, found: list[Finding], config: AlmConfig | None) -> None:
    if not any(finding.again for finding in found):
        invalidate(found)
        return
    if _bring_back(entry, found):
        return
    _check_surroundings(store, entry, found)
    run = _find_stage(store, entry, config)
    invalidate(found)
    run()
    remove(entry.file(INVALID_MANIFEST))


def _bring_back(entry: Entry, found: list[Finding]) -> bool:
    """Whether this machine had a copy of all that is wrong: a student is hours of training, its upload seconds."""
    names = [finding.url.rsplit("/", 1)[-1] for finding in found if finding.again]
    return isinstance(entry.manifest, FolderManifest) and upload_again(entry.root, entry.kind, entry.manifest, names)


def _check_surroundings(store: Store, entry: Entry, found: list[Finding]) -> None:
    """Raises UserError where an input is gone, or where a folder that is made anew would take in strange files."""
    if gone := [key for key in store.inputs(entry.key).values() if key not in store.entries]:
        raise UserError(f"{entry.url}: was made from {gone[0]}, which is not there any more: run again from the start")
    strange = [finding.url for finding in found if not finding.again and not finding.stale]
    if strange and entry.kind in FOLDER_KINDS:
        raise UserError(f"{strange[0]}: is not of the folder, which is made again as a whole: move it elsewhere first")


def _find_stage(store: Store, entry: Entry, config: AlmConfig | None) -> Stage:
    """What makes this dataset and no other.

    Raises UserError when no configuration is known, or what they make now are other datasets.
    """
    told = [config] if config else [stored_config(dict(kept), entry.url) for kept in _provenances(store, entry)]
    for each in told or [stored_config({}, entry.url)]:
        if stage := stage_of(Pipeline(each, store.root), entry.key):
            return stage
    raise UserError(
        f"{entry.url}: its configuration now makes another dataset: the corpus, a tokenizer, a model or this program "
        "has changed since. Bring back what it was made from, or `alm delete` it and run again"
    )


def _provenances(store: Store, entry: Entry) -> Iterator[dict[str, object]]:
    """Of its own manifest, or, where that is lost, of what was made from it."""
    if entry.provenance:
        yield dict(entry.provenance)
        return
    for other in store.entries.values():
        if other.provenance and entry.key in store.origins([other.key]):
            yield dict(other.provenance)


def stage_of(pipeline: Pipeline, key: str) -> Stage | None:
    """The stage of a pipeline that writes `kind/name`, or None where none does."""
    makers: dict[str, list[tuple[Callable[[], Dataset | StoredFolder | None], Stage]]] = {
        "examples": [(lambda: pipeline.examples, pipeline.shard)],
        "tokenizers": [(lambda: pipeline.made_tokenizer, pipeline.train_tokenizer)],
        "tokens": [
            (lambda: pipeline.tokens("teacher"), lambda: pipeline.tokenize("teacher")),
            (lambda: pipeline.tokens("student"), lambda: pipeline.tokenize("student")),
        ],
        "alignments": [(lambda: pipeline.alignments, pipeline.align)],
        "pair_biases": [(lambda: pipeline.stored_pair_biases, pipeline.pair_biases)],
        "teacher_scores": [(lambda: pipeline.scores, pipeline.score)],
        "students": [(lambda: pipeline.student, pipeline.train)],
    }
    kind, _, name = key.partition("/")
    for make, stage in makers.get(kind, []):
        made = make()
        if made and made.name == name:
            return stage
    return None
