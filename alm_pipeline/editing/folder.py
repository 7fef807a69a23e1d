"""The folder of an edited model: folded weights, or a file of code, with the record `edit.json` and a card."""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from alm_pipeline.editing.card import PICTURE, edit_card
from alm_pipeline.editing.carried import attach
from alm_pipeline.editing.directions.settings import Fold
from alm_pipeline.editing.directions.stage import FACTORS, Projections, read_spectrum
from alm_pipeline.editing.edits import PlacedEdit, make_edits, measure_scales
from alm_pipeline.editing.folding import Folding, fold, plan_folding
from alm_pipeline.editing.heat_map import draw_spectrum
from alm_pipeline.editing.probes import probe
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.loaded_files import GENERATION_CONFIG
from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.models.reference import ModelReference
from storage.errors import UserError
from storage.fingerprints import fingerprint
from storage.printed.inert import json_text

RECORD, EVALUATION, CARD = "edit.json", "edit-evaluation.json", "README.md"
STAGE_VERSION = 1


@dataclass(frozen=True)
class EditedFolder:
    """The folder of an edited model, whether or not it is written yet."""

    path: Path
    identity: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    def record(self) -> dict[str, Any] | None:
        """Return the record of the edit, if the folder holds it.

        Raises UserError if it holds something else: another edit, or other files.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return None
        file = self.path / RECORD
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if not isinstance(found, dict) or found.get("fingerprint") != self.fingerprint:
            what = "holds another edit" if found else "exists already"
            raise UserError(f"{self.path}: {what}: name a new folder")
        return found

    def write_measures(self, identity: Mapping[str, Any], measures: Sequence[Mapping[str, Any]]) -> None:
        """Write the measures into the folder, and the card with them; `identity` is what they are measured on."""
        record = self.record()
        assert record
        self._write_card(self.path, record, measures)
        _write_json(self.path / EVALUATION, {"measured": dict(identity), "measures": list(measures)})

    def write(
        self, reference: ModelReference, model: PreTrainedModel, projections: Path, described: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the edited model with its record; it is complete or not there. Returns the record.

        `projections` is the folder with the directions, `described` what the record holds besides its identity.
        """
        record = {"fingerprint": self.fingerprint, "identity": dict(self.identity), **described}
        with new_folder(self.path) as written:
            with quiet_transformers():
                model.save_pretrained(written)
                if (reference.folder / GENERATION_CONFIG).is_file():
                    GenerationConfig.from_pretrained(reference.folder).save_pretrained(written)
                reference.tokenizer.fast.save_pretrained(written)
            shutil.copyfile(projections / FACTORS, written / FACTORS)
            with contextlib.suppress(UserError):  # without matplotlib: the projections have the numbers
                title = f"{described['settings']['method']}: {self.path.name}"
                (written / PICTURE).write_bytes(draw_spectrum(read_spectrum(projections), title))
            _write_json(written / RECORD, record)
            self._write_card(written, record, [])
            reference.check_unchanged()
            reference.tokenizer.check_unchanged()
        return record

    def _write_card(self, folder: Path, record: Mapping[str, Any], measures: Sequence[Mapping[str, Any]]) -> None:
        card = edit_card(record, measures, has_picture=(folder / PICTURE).is_file())
        (folder / CARD).write_text(card, encoding="utf-8")


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json_text(content) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Built:
    """An edited model in memory."""

    foldings: tuple[Folding, ...]
    """empty if the edits are in the file of code"""
    not_folded: str | None
    """why they are"""

    def record(self, projections: Projections) -> dict[str, Any]:
        """Return as plain values what was edited, and how it is part of the model."""
        edited = [place for place in projections.spectrum if place.edited]
        ranks = ("place", "positive_rank", "negative_rank")
        return {
            "layers": sorted({place.layer for place in edited}),
            "places": [{name: getattr(place, name) for name in ranks} for place in edited],
            "foldings": [asdict(folding) for folding in self.foldings],
            "not_folded": self.not_folded,
        }


def build_edited(
    model: PreTrainedModel,
    projections: Projections,
    nonlinearity: str,
    choice: Fold,
    rows: Sequence[Sequence[int]],
    batch_tokens: int,
) -> Built:
    """Edit the model in place: fold the edits into its weights, or attach them by the file of code.

    `rows` are ids of texts, over whose tokens constant scales are measured. Raises UserError, naming the layer's type,
    for what can't be folded where `choice` is always.
    """
    edits = make_edits(projections, nonlinearity)
    plan = "fold: never" if choice == "never" else _plan(model, edits, rows, batch_tokens)
    if isinstance(plan, list):
        fold(model, edits, plan)
        return Built(tuple(plan), None)
    if choice == "always":
        raise UserError(f"the edit can't be folded into weights: {plan}: set fold to auto, which adds a file of code")
    attach(model, edits)
    return Built((), plan)


def _plan(
    model: PreTrainedModel, edits: Sequence[PlacedEdit], rows: Sequence[Sequence[int]], batch_tokens: int
) -> list[Folding] | str:
    probes = {each.place.place: probe(model, each.place, torch.tensor(rows[0])) for each in edits}
    linear = [each for each in edits if not each.edit.shifts and each.edit.nonlinearity == "none"]
    scales = measure_scales(model, linear, rows, batch_tokens) if linear else {}
    return plan_folding(model, edits, probes, scales)
