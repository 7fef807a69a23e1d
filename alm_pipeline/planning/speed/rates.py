"""How fast this machine did the stages of earlier runs, in its cache folder: what a plan's hours are made of.

Of each kind of work (a stage, with its model and settings, on these devices) the largest job is kept, or a newer one
that is not much smaller: small jobs say little, since they mostly load.
"""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from storage.fingerprints import fingerprint
from storage.folders import cache_folder

STARTUP_S: Mapping[str, float] = {
    "train tokenizer": 0.5,
    "shard": 0.3,
    "tokenize": 0.5,
    "align": 0.5,
    "pair biases": 0.5,
    "score": 3.0,
    "train": 5.0,
}
"""What a stage takes before its first token: loading, compiling. Measured on two cores with SmolLM2-135M."""
_SMALLER = 2.0
"""how much smaller a newer job may be to replace an older one"""
_LIKE = 10.0
"""how many times larger or smaller a model may be whose rate says something: the time of tiny ones is all overhead"""


class Work(BaseModel):
    """What decides how fast a stage is."""

    model_config = ConfigDict(frozen=True)

    stage: str
    model: str = ""
    """the identity of the model or tokenizer that does it"""
    parameters: int | None = None
    """of the model, if they are known: a larger model takes longer in proportion"""
    settings: str = ""
    """a fingerprint of the settings that decide the speed"""
    devices: tuple[str, ...] = ()


class Rate(BaseModel):
    """A job that was done."""

    work: Work
    amount: float
    seconds: float

    @property
    def per_second(self) -> float:
        return rate_of(self.work.stage, self.amount, self.seconds)


def record_rate(work: Work, amount: float, seconds: float) -> None:
    """Keep how long a job took, if its folder can be written."""
    if amount <= 0 or seconds <= 0:
        return
    file = _folder() / f"{fingerprint(work.model_dump(mode='json'))}.json"
    before = _read(file)
    if before and before.amount > _SMALLER * amount:
        return
    partial = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(Rate(work=work, amount=amount, seconds=seconds).model_dump_json(), encoding="utf-8")
        partial.replace(file)


def find_rate(work: Work) -> float | None:
    """Return the units per second that this machine did of such work, or of similar work; None if it did none.

    The same settings count before other ones, and the same model before another one, whose rate is taken in proportion
    to the parameters of both if they differ by less than `_LIKE` times.
    """
    rates = [rate for rate in _all() if rate.work.stage == work.stage and rate.work.devices == work.devices]
    same = [rate for rate in rates if rate.work.model == work.model]
    if same:
        return max(same, key=lambda rate: (rate.work.settings == work.settings, rate.amount)).per_second
    others = [rate for rate in rates if rate.work.parameters and abs(_size_apart(rate, work)) <= math.log(_LIKE)]
    if not work.parameters or not others:
        return None
    nearest = min(others, key=lambda rate: abs(_size_apart(rate, work)))
    return nearest.per_second * math.exp(_size_apart(nearest, work))


def startup_seconds(stage: str) -> float:
    return STARTUP_S[stage.removesuffix(" teacher").removesuffix(" student")]


def rate_of(stage: str, amount: float, seconds: float) -> float:
    """Return the units per second of a job, without its start.

    A job that took little longer than its start says that the rest was fast, but not how fast.
    """
    return amount / max(seconds - startup_seconds(stage), seconds / 2, 1e-6)


def seconds_of(stage: str, amount: float, rate: float) -> float:
    """Return the seconds of a job, with its start."""
    return startup_seconds(stage) + amount / rate if amount else 0.0


def _size_apart(rate: Rate, work: Work) -> float:
    """Return the logarithm of how many times larger the model of a job is."""
    return math.log((rate.work.parameters or 1) / (work.parameters or 1))


def _folder() -> Path:
    return cache_folder() / "rates"


def _all() -> list[Rate]:
    folder = _folder()
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [rate for file in files if (rate := _read(file))]


def _read(file: Path) -> Rate | None:
    with suppress(OSError, ValueError):
        return Rate.model_validate_json(file.read_bytes())
    return None
