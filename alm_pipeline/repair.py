"""Repair of a store: damaged data is written again with the configurations that the manifests hold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.provenance import stored_config
from alm_pipeline.scoring.finite import find_damages
from storage.dataset import Dataset, Manifest, shard_file
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, FolderManifest, StoredFolder, upload_again
from storage.lease import LEASE, hold, hold_unused
from storage.replacement import replacement_url, request_replacement, take_place
from storage.schemas import Kind
from storage.upkeep.catalog import Catalog, CatalogEntry, EntryState, open_entry
from storage.upkeep.verify import Damage, remove_stale, stale_shards
from storage.urls import join_url, list_names, remove

Stage = Callable[[Pipeline], object]


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

    What is there stays until its stage has written the same again beside it: a repair that fails, or is killed, leaves
    what it found. What a run is writing is refused. `config` is used instead of the
    manifests' configurations.
    """
    for key in (key for key in catalog.entries if key in keys):
        entry = open_entry(catalog.entries[key].url)
        if damages := tuple(find_damages(entry, checksums)):
            try:
                _fix(catalog, entry, damages, config)
                changed = _checksums(entry) not in (None, _checksums(open_entry(entry.url)))
                yield Repair(key, damages, tuple(find_damages(open_entry(entry.url), checksums)), changed=changed)
            except UserError as error:
                yield Repair(key, damages, damages, str(error))


def _checksums(entry: CatalogEntry) -> object:
    """Return the checksums of all shards or files in the manifest; None if there is no manifest."""
    if isinstance(entry.manifest, Manifest):
        return [record.sha256 for record in entry.manifest.shards]
    return entry.manifest and entry.manifest.files


def _fix(catalog: Catalog, entry: CatalogEntry, damages: Sequence[Damage], config: AlmConfig | None) -> None:
    with hold_unused(entry.url):  # a run that writes it would undo the repair, or the repair the run
        if entry.has_ready_replacement:
            take_place(entry.url)
            return
    if not any(damage.needs_rerun for damage in damages):
        remove_stale(damages)
        return
    if _upload_copies(entry, damages):
        return
    _check_surroundings(catalog, entry, damages)
    pipeline, output, stage = _find_stage(catalog, entry, config)
    if isinstance(output, Dataset):
        _write_again(pipeline, replace(output, rewritten=stale_shards(damages)), stage)
    else:
        if entry.state != EntryState.NOT_COMPLETE:
            request_replacement(entry.url)
        stage(pipeline)
    remove_stale([damage for damage in damages if not damage.needs_rerun])


def _write_again(pipeline: Pipeline, dataset: Dataset, stage: Stage) -> None:
    """Write some shards of a dataset again, and the manifest. Until they are complete, what is there stays."""
    assert dataset.rewritten is not None
    kept = {shard_file(shard, ending) for shard in dataset.rewritten for ending in ("parquet", "json")}
    for name in set(list_names(replacement_url(dataset.url))) - kept:
        remove(join_url(replacement_url(dataset.url), name))  # of a repair that was interrupted, of other shards
    stage(pipeline.repairing(dataset))
    with hold(join_url(dataset.url, LEASE)):
        take_place(dataset.url)


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


def _find_stage(
    catalog: Catalog, entry: CatalogEntry, config: AlmConfig | None
) -> tuple[Pipeline, Dataset | StoredFolder, Stage]:
    """Return the pipeline that writes exactly this dataset or folder, that output, and its stage.

    Raises UserError if no configuration is known, or if the known ones now make other datasets.
    """
    if command := WRITTEN_BY.get(entry.kind):
        raise UserError(f"{entry.url}: `alm delete {entry.url}` and the same `{command}` write it again")
    configs = [config] if config else [stored_config(stored, entry.url) for stored in _provenances(catalog, entry)]
    for candidate in configs or [stored_config({}, entry.url)]:
        whole = Pipeline(candidate, catalog.root)
        for pipeline in whole.parts if entry.kind in _OF_SOURCES else (whole,):
            if found := stage_of(pipeline, entry.key):
                return pipeline, *found
    raise UserError(
        f"{entry.url}: its configuration now makes another dataset: the corpus, a tokenizer, a model or this program "
        "has changed since. Restore what it was made from, or `alm delete` it and run again"
    )


def _provenances(catalog: Catalog, entry: CatalogEntry) -> Iterator[dict[str, object]]:
    """Yield the provenance in its manifest, or, if that is lost, those of everything that was made from it.

    Where a mixture is recorded besides, it counts: its sources have decided the student's tokenizer together.
    """
    made_from_it = (
        other.provenance
        for other in catalog.entries.values()
        if other.provenance and entry.key in catalog.origins([other.key])
    )
    for stored in [entry.provenance] if entry.provenance else made_from_it:
        yield {**stored, "configuration": stored.get("mixture", stored.get("configuration"))}


STAGES_OF_KIND: dict[str, list[tuple[Callable[[Pipeline], Dataset | StoredFolder | None], Stage]]] = {
    "signatures": [(lambda pipeline: pipeline.signatures, Pipeline.compare)],
    "decisions": [(lambda pipeline: pipeline.decisions, Pipeline.decide)],
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
"""For each kind that a pipeline writes: what it writes of it, and the stage that writes it."""
_OF_SOURCES = ("signatures", "decisions", "examples", "tokens", "alignments", "pair_biases", "teacher_scores")
"""the kinds that each source of a mixture has for itself"""
WRITTEN_BY: dict[str, str] = {
    **dict.fromkeys((Kind.QUESTIONS, Kind.CHOICE_SCORES, Kind.PLACES, Kind.NEXT_BYTES), "alm calibrate"),
    **dict.fromkeys((Kind.DEMONSTRATIONS, Kind.NEUTRAL_ANSWERS, Kind.ACTIVATIONS, Kind.ACTIVATION_SUMS), "alm edit"),
    **dict.fromkeys(("projections", "measurements"), "alm edit"),
    **dict.fromkeys(("substrings", "hypernetworks"), "alm hypernet"),
    "rounds": "alm on-policy",
}
"""The kinds that no pipeline writes, and the command that does."""


def stage_of(pipeline: Pipeline, key: str) -> tuple[Dataset | StoredFolder, Stage] | None:
    """Return what a pipeline writes as `kind/name`, with the stage that writes it, or None if no stage does."""
    kind, _, name = key.partition("/")
    for output_of, stage in STAGES_OF_KIND[kind]:
        output = output_of(pipeline)
        if output and output.name == name:
            return output, stage
    return None
