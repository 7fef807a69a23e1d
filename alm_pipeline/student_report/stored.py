"""The students that a report is about, as the store has them: everything is read from manifests and small files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from alm_pipeline.config.fields.repeated import each_once
from alm_pipeline.naming.differences import value_text
from alm_pipeline.naming.names import recorded_name
from alm_pipeline.training.student.curves import TrainingCurves, read_curves, read_named_curves
from storage.dataset import Manifest
from storage.errors import UserError
from storage.folders import FolderManifest
from storage.upkeep.catalog import Catalog, CatalogEntry, named_inputs, open_entry
from storage.urls import absolute_url, join_url, list_folders

ROLES = ("examples", "teacher_tokens", "student_tokens", "alignments", "scores")
"""the datasets that a student is made from, in the order in which they are made"""


@dataclass(frozen=True)
class ReportedStudent:
    """A finished student with what it was made from."""

    url: str
    name: str
    """what makes it differ from the other students of the report; of one alone, what it is"""
    manifest: FolderManifest
    origins: Catalog
    """the student and all that it was made from, as far as it is still stored"""
    curves: TrainingCurves

    @property
    def key(self) -> str:
        return f"students/{self.manifest.name}"

    @property
    def results(self) -> Mapping[str, Any]:
        return self.manifest.results

    @property
    def configuration(self) -> Mapping[str, Any]:
        """The recorded configuration; no fingerprint covers it, so it may be anything."""
        return mapping(self.manifest.provenance.get("configuration"))

    @property
    def models(self) -> str:
        """The teacher and the student's model, in short."""
        student = mapping(self.configuration.get("student")).get("model")
        teachers = dict.fromkeys(value_text(self.teacher_of(source)) for source in self.sources.values())
        return f"{' and '.join(teachers)} → {value_text(student)}"

    def teacher_of(self, source: Mapping[str, Any]) -> Any:
        """Return the recorded name of a source's teacher."""
        return source.get("teacher") or self.configuration.get("teacher")

    @cached_property
    def datasets(self) -> Mapping[str, CatalogEntry]:
        """The datasets by role, without those that are no longer stored; those of a mixture are `SOURCE: role`."""
        keys = self.origins.inputs(self.key)
        roles = [f"{prefix}{role}" for prefix in self.sources for role in ROLES]
        found = {role: self.origins.entries.get(keys[role]) for role in roles if role in keys}
        return {role: entry for role, entry in found.items() if entry}

    @property
    def sources(self) -> dict[str, Mapping[str, Any]]:
        """The recorded corpus of each source, by what its roles begin with: nothing, if there is a single corpus."""
        corpus = self.configuration.get("corpus")
        if not isinstance(corpus, list):
            return {"": mapping(corpus)}
        return {f"{mapping(source).get('name')}: ": mapping(source) for source in corpus}

    def dataset(self, role: str) -> Manifest | None:
        """Return the manifest of a dataset; None if it is no longer stored."""
        manifest = self.datasets[role].manifest if role in self.datasets else None
        return manifest if isinstance(manifest, Manifest) else None


def reported_students(urls: Sequence[str]) -> list[ReportedStudent]:
    """Return the students at these URLs, named apart. Raises UserError for one that is not finished."""
    places = each_once(absolute_url(url) for url in urls)
    manifests = [_manifest(url) for url in places]
    curves = read_named_curves(places) if len(places) > 1 else [_alone(places[0])]
    return [
        ReportedStudent(url, run.name, manifest, origins(url), run)
        for url, run, manifest in zip(places, curves, manifests, strict=True)
    ]


def _manifest(url: str) -> FolderManifest:
    entry = open_entry(url)
    if entry.kind != "students" or not isinstance(entry.manifest, FolderManifest):
        problem = f" ({entry.problem})" if entry.problem else ""
        raise UserError(f"{url}: is not the folder of a finished student{problem}; `alm list ROOT` lists the students")
    return entry.manifest


def _alone(url: str) -> TrainingCurves:
    run, manifest = read_curves(url), _manifest(url)
    recorded = mapping(manifest.provenance.get("configuration"))
    return replace(run, name=recorded_name(recorded) if recorded else run.name)


def origins(url: str) -> Catalog:
    """Return the catalog of a student and all that it was made from: few manifests, however large the store is."""
    root, kind, name = absolute_url(url).rsplit("/", 2)
    waiting = [f"{kind}/{name}", *(f"tokenizers/{folder}" for folder in list_folders(join_url(root, "tokenizers")))]
    entries: dict[str, CatalogEntry] = {}
    while waiting:
        key = waiting.pop()
        if key in entries:
            continue
        entry = open_entry(join_url(root, key))
        if entry.manifest:
            entries[key] = entry
            waiting += named_inputs(entry.manifest.identity).values()
    return Catalog(root, entries)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping that a manifest records; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """Return a number that a manifest records; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
