"""Edits a model: every stage from demonstrations to the evaluated folder, each found again by its fingerprint.

from alm_pipeline.editing.edit import Editing

editing = Editing("demo:smollm2-135m-instruct", DemonstrationsConfig(url="pairs.jsonl"), "alm-data")
print(editing.run("edited").measures)
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alm_pipeline.config import ScoreConfig
from alm_pipeline.editing.directions.activations import (
    activations_dataset,
    keeps_activations,
    sums_dataset,
    write_activations,
    write_sums,
)
from alm_pipeline.editing.directions.demonstrations import (
    demonstrations_dataset,
    unequal_answers,
    write_demonstrations,
)
from alm_pipeline.editing.directions.neutral import neutral_answers_dataset, write_neutral_answers
from alm_pipeline.editing.directions.places import Place, find_places
from alm_pipeline.editing.directions.settings import (
    ActivationConfig,
    DemonstrationsConfig,
    EditConfig,
    EditEvaluationConfig,
    layer_numbers,
)
from alm_pipeline.editing.directions.stage import Projections, projections_folder, read_projections, write_projections
from alm_pipeline.editing.directions.texts import TextEncoder
from alm_pipeline.editing.evaluation import compare, damage
from alm_pipeline.editing.folder import STAGE_VERSION, EditedFolder, build_edited
from alm_pipeline.editing.measurements import Measurements
from alm_pipeline.models.configuration import empty_model, text_config
from alm_pipeline.models.files import label
from alm_pipeline.models.loading import require_device
from alm_pipeline.models.reference import ModelReference
from storage.dataset import Dataset
from storage.folders import StoredFolder

_SCALE_TEXTS = 64
"""demonstrations over whose tokens constant scales are measured"""
_FEW = 25
"""demonstrations below which even the paper's smallest set is larger"""

_MASSIVE_SHARE = 0.4
"""the share of the squares from which on massive channels are warned of"""

logger = logging.getLogger("alm_pipeline")


class EditResult(NamedTuple):
    """What an edit made."""

    record: dict[str, Any]
    """what `edit.json` holds: the settings, and how the edit is part of the model"""
    measures: list[dict[str, Any]]
    """each number before and after the edit, with the interval of the difference; the control first"""


@dataclass(frozen=True)
class Editing:
    """The edit of a model by demonstrations. Stages are stored under `root`."""

    model: str
    """a folder, a hub name, or `demo:NAME`"""
    demonstrations: DemonstrationsConfig
    root: str
    activations: ActivationConfig = field(default_factory=ActivationConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    trust_remote_code: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """what manifests record besides (`alm_pipeline.provenance`)"""

    @property
    def configuration(self) -> dict[str, Any]:
        """All settings as plain values, for the provenance."""
        parts = {"demonstrations": self.demonstrations, "activations": self.activations, "edit": self.edit}
        return {"model": self.model, **{name: part.model_dump(mode="json") for name, part in parts.items()}}

    @cached_property
    def reference(self) -> ModelReference:
        return ModelReference(self.model, self.trust_remote_code)

    @cached_property
    def examples(self) -> Dataset:
        """The dataset of demonstrations."""
        return self._described(demonstrations_dataset(self.demonstrations, self.root))

    @cached_property
    def answers(self) -> Dataset:
        """The dataset of the model's own answers."""
        return self._described(neutral_answers_dataset(self.examples, self.reference, self.activations))

    @property
    def streams(self) -> bool:
        """Whether only the sums of activations are stored. A mean shift needs no covariance, which is most of a sum."""
        if self.edit.method == "mean_shift":
            return False
        largest = max(record.rows for record in self.examples.complete_manifest().shards)
        return not keeps_activations(largest, self.width)

    @property
    def sources(self) -> list[Dataset]:
        """What the projections are made of: activations, or their sums. The demonstrations have to be written."""
        if self.streams:
            nonlinearity = self.edit.nonlinearity
            sums = sums_dataset(self.examples, self.answers, self.reference, self.activations, nonlinearity)
            return [self._described(sums)]
        texts = [self.examples] if self.edit.method == "mean_shift" else [self.examples, self.answers]
        return [self._described(activations_dataset(each, self.reference, self.activations)) for each in texts]

    @cached_property
    def places(self) -> list[Place]:
        """The places of all layers, found without the weights."""
        with torch.device("meta"):
            empty = empty_model(self.reference.load_config(), self.model, trust_remote_code=self.trust_remote_code)
        return find_places(empty, self.activations.where)

    @property
    def width(self) -> int:
        return int(text_config(self.reference.load_config()).hidden_size)

    @cached_property
    def layers(self) -> list[int]:
        """The layers that are edited."""
        return layer_numbers(self.edit.layers, 1 + max(place.layer for place in self.places))

    @property
    def projections(self) -> StoredFolder:
        folder = projections_folder(self.sources, self.edit, self.layers)
        return replace(folder, provenance=self.provenance)

    def _described(self, dataset: Dataset) -> Dataset:
        return replace(dataset, provenance=self.provenance)

    def run(self, path: Path | str, evaluation: EditEvaluationConfig | None = None) -> EditResult:
        """Run every stage that is not finished, down to the evaluated folder.

        What can be known before the model is loaded is known then. Raises UserError if something can't be read, if the
        model can't be edited so, or if the folder holds anything but this very edit.
        """
        score = ScoreConfig(dtype=self.activations.dtype, batch_tokens=self.activations.batch_tokens)
        config, chat = evaluation or EditEvaluationConfig(), self.activations.chat
        require_device(self.activations.device)
        measurements = Measurements(self.reference, config, self.demonstrations, score, chat)
        record = self.write(path)
        return EditResult(record, self._measure(Path(path), measurements))

    def project(self) -> Projections:
        """Run every stage up to the projections that is not finished."""
        self._begin()
        if self.edit.method == "sea":
            write_neutral_answers(self.answers, self.examples, self.reference, self.activations)
        for source in self.sources:
            if self.streams:
                write_sums(source, self.examples, self.answers, self.reference, self.activations)
            else:
                texts = self.answers if "neutral_answers" in source.identity else self.examples
                write_activations(source, texts, self.reference, self.activations)
        write_projections(self.projections, self.sources, self.edit, self.places, self.width)
        return read_projections(self.projections)

    def _begin(self) -> None:
        """Refuse what can't be edited, and write the demonstrations."""
        self.reference.refuse_adapter()
        _ = self.layers
        write_demonstrations(self.examples, self.demonstrations)

    def folder(self, path: Path | str) -> EditedFolder:
        """Return the edited model's folder, whether or not it is written. The demonstrations have to be."""
        identity = {
            "stage_version": STAGE_VERSION,
            "model": self.reference.identity,
            "tokenizer": self.reference.tokenizer.saved_identity,
            "generation": self.reference.generation_config_hash(),
            "projections": self.projections.name,
            "fold": self.edit.fold,
        }
        return EditedFolder(Path(path), identity)

    def write(self, path: Path | str) -> dict[str, Any]:
        """Run every stage up to the edited folder, and return its record.

        A folder that holds this very edit is complete already. Raises UserError if it holds anything else.
        """
        self._begin()
        folder = self.folder(path)
        if record := folder.record():
            return record
        projections = self.project()
        warnings = self.warnings(projections)
        for warning in warnings:
            logger.warning("%s", warning)
        model = self.reference.load(self.reference.weights_dtype, device=self.activations.device)
        rows, batch_tokens = self._scale_rows(), self.activations.batch_tokens
        built = build_edited(model, projections, self.edit.nonlinearity, self.edit.fold, rows, batch_tokens)
        manifest = self.examples.complete_manifest()
        described = {
            "model": label(self.model),
            "model_identity": self.reference.identity,
            "demonstrations": self.examples.label,
            "rows": manifest.rows,
            "dropped": manifest.dropped,
            "settings": {**self.activations.model_dump(mode="json"), **self.edit.model_dump(mode="json")},
            "warnings": warnings,
            **built.record(projections),
        }
        return folder.write(self.reference, model, self.projections.fetch(), described)

    def _scale_rows(self) -> list[list[int]]:
        """Return the ids of the first demonstrations with their positive answers."""
        encoder = TextEncoder(self.reference, self.activations.chat)
        table = self.examples.read_shard(0, ["prompt", "positive"]).slice(0, _SCALE_TEXTS)
        return [encoder.ids(row["prompt"], row["positive"]) for row in table.to_pylist()]

    def _measure(self, path: Path, measurements: Measurements) -> list[dict[str, Any]]:
        """Measure the edited folder and the model, unless they are measured, and write the card with the results.

        Warns if the control is much worse.
        """
        edited, device = ModelReference(str(path), trust_remote_code=True), self.activations.device
        models = (self.reference, edited)
        before, after = (measurements.of(model, self.root, device, self.provenance) for model in models)
        measures = [measure.document() for measure in compare(before, after)]
        self.folder(path).write_measures(measurements.identity, measures)
        if warning := damage(measures):
            logger.warning("%s: %s", path, warning)
        return measures

    def warnings(self, projections: Projections) -> list[str]:
        """Return what speaks against trusting the edit, before it is measured."""
        manifest = self.examples.complete_manifest()
        found = unequal_answers(manifest)
        if manifest.rows < _FEW:
            found.append(f"{manifest.rows} demonstrations: the least that the paper tries is {_FEW}")
        if self.edit.method == "sea" and manifest.rows <= self.width:
            found.append(
                f"{manifest.rows} demonstrations for activations of width {self.width}: the covariances have at most "
                "that rank, and directions beyond it are neither kept nor dropped"
            )
        massive = [place for place in projections.spectrum if place.edited and place.massive_share > _MASSIVE_SHARE]
        if massive and self.edit.method == "sea":
            first = massive[0]
            found.append(
                f"{len(massive)} edited places have massive channels (in {first.place}: "
                f"{', '.join(map(str, first.massive_channels[:8]))}, {first.massive_share:.0%} of the squares): the "
                "leading directions are these channels, and an edit of them damages the model: set where to mlp, or "
                "leave these layers out"
            )
        return found


def describe(record: Mapping[str, Any]) -> str:
    """Return in a line how the edit is part of the model."""
    if not record["foldings"]:
        return f"not folded ({record['not_folded']}): load it with trust_remote_code"
    exact = all(folding["exact"] for folding in record["foldings"])
    if exact:
        return f"folded into {len(record['foldings'])} layers' weights, exactly"
    spread = max(folding["spread"] for folding in record["foldings"])
    return f"folded into {len(record['foldings'])} layers' weights with constant scales (spread up to {spread:.1%})"
