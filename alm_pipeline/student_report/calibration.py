"""What `alm calibrate` wrote about models: their measures, and how often they are right where they are how sure."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alm_pipeline.calibration.report.output import DOCUMENT, SHOWN
from storage.errors import UserError
from storage.urls import join_url, read_bytes

SIDE = 100
"""of the drawing of a model's reliability, in its own units"""
Share = Annotated[float, Field(ge=0, le=1)]
Estimate = tuple[float, float, float]
"""a value and its 95 % interval"""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Bin(_Stored):
    low: Share
    high: Share
    questions: Annotated[int, Field(ge=1)]
    confidence: Share
    accuracy: Share


class _Reliability(_Stored):
    model: str
    bins: list[_Bin]


class _Measured(_Stored):
    model: str
    accuracy: Estimate
    ece: Estimate
    ace: Estimate
    nll: Estimate
    brier: Estimate
    confidence: Estimate
    overconfidence: Estimate


class _Verdict(_Stored):
    reading: str
    sentence: str


class _Calibration(_Stored):
    """What of `calibration.json` is shown."""

    title: str
    questions: dict[str, int]
    shown: str
    reading: str
    models: list[_Measured]
    reliability: list[_Reliability]
    verdicts: list[_Verdict]


def calibrations(folders: Sequence[str]) -> dict[str, Any] | None:
    """Return a table for each folder that `alm calibrate` wrote; None without one.

    Raises UserError for another folder, or one that is damaged.
    """
    tables = [_table(_stored(folder)) for folder in folders]
    return {"tables": tables, "header": list(SHOWN.values()), "side": SIDE} if tables else None


def _stored(folder: str) -> _Calibration:
    url = join_url(folder, DOCUMENT)
    content = read_bytes(url)
    if content is None:
        raise UserError(
            f"--calibration {folder}: has no {DOCUMENT}: name the folder of `alm calibrate MODEL... --output FOLDER`"
        )
    try:
        return _Calibration.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(f"{url}: is damaged ({place}: {first['msg']}): run `alm calibrate` again") from error


def _table(found: _Calibration) -> dict[str, Any]:
    half = "the test half, " if found.shown == "test" else ""
    return {
        "title": found.title,
        "note": f"{half}{found.questions.get(found.shown, 0):,} questions, reading {found.reading}",
        "sentences": [verdict.sentence for verdict in found.verdicts if verdict.reading == found.reading],
        "rows": [{"model": row.model, "cells": [getattr(row, name) for name in SHOWN]} for row in found.models],
        "drawn": [{"model": each.model, "bars": _bars(each.bins)} for each in found.reliability],
    }


def _bars(bins: Sequence[_Bin]) -> list[dict[str, Any]]:
    """Return a bar for each bin: as high as its share of right answers, and where a calibrated model's would end.

    The fewer questions it has beside the fullest, the paler it is.
    """
    most = max((bin_.questions for bin_ in bins), default=1)
    return [
        {
            "x": round(SIDE * bin_.low, 1),
            "y": round(SIDE * (1 - bin_.accuracy), 1),
            "width": round(SIDE * (bin_.high - bin_.low), 1),
            "height": round(SIDE * bin_.accuracy, 1),
            "sure": round(SIDE * (1 - bin_.confidence), 1),
            "opacity": round(0.25 + 0.75 * bin_.questions / most, 2),
            "says": f"confidence {bin_.confidence:.2f}: {bin_.accuracy:.0%} of {bin_.questions:,} right",
        }
        for bin_ in bins
    ]
