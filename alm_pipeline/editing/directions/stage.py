"""The stage ACTIVATIONS → PROJECTIONS: of each edited place its directions, of every place its spectrum.

Shapes: N demonstrations, P places, D width, K rank, S singular values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file

from alm_pipeline.editing.directions.activations import (
    ANSWERS,
    read_activations,
    read_sums,
)
from alm_pipeline.editing.directions.capture import Floats
from alm_pipeline.editing.directions.modeling_edited import apply_function
from alm_pipeline.editing.directions.places import Place
from alm_pipeline.editing.directions.settings import EditConfig
from alm_pipeline.editing.directions.spectrum import Spectrum, signature, spectra
from alm_pipeline.editing.directions.sums import Float64s, PairSums, add_up
from alm_pipeline.runtime.progress import track
from storage.dataset import Dataset
from storage.folders import FolderManifest, StoredFolder, make_folder
from storage.lease import Lease
from storage.schemas import Kind

STAGE_VERSION = 1
FACTORS, SPECTRUM = "projections.safetensors", "spectrum.parquet"
MASSIVE = 10.0
"""times the median channel's root mean square, from which on a channel is called massive

Of SmolLM2's residual stream, one or two such channels hold half of the squares at last tokens, and an edit breaks the
model; of its MLPs' outputs they hold at most a third, of the last two layers alone.
"""
_MOST_VALUES = 128
"""singular values that are kept of a place, for the heat map"""

Rows = tuple[Float64s, Float64s, Float64s]

SCHEMA = pa.schema(
    [
        pa.field("place", pa.string(), nullable=False),
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("module", pa.string(), nullable=False),
        pa.field("edited", pa.bool_(), nullable=False),
        pa.field("signature", pa.float64(), nullable=False),
        pa.field("positive_rank", pa.int32()),
        pa.field("negative_rank", pa.int32()),
        pa.field("positive_values", pa.list_(pa.float64()), nullable=False),
        pa.field("negative_values", pa.list_(pa.float64()), nullable=False),
        pa.field("massive_channels", pa.list_(pa.int32()), nullable=False),
        pa.field("massive_share", pa.float64(), nullable=False),
    ]
)
"""The columns of `spectrum.parquet`, with one row per place."""


@dataclass(frozen=True)
class PlaceSpectrum:
    """What is known of one place."""

    place: str
    layer: int
    part: str
    module: str
    edited: bool
    signature: float
    positive_rank: int | None
    """K⁺; None for a mean shift"""
    negative_rank: int | None
    positive_values: list[float]
    """[S] the largest singular values of Ω⁺"""
    negative_values: list[float]
    massive_channels: list[int]
    """the channels of neutral activations that are `MASSIVE` times the median one"""
    massive_share: float
    """their share of the squared norm"""


@dataclass(frozen=True)
class Projections:
    """The directions of an edit, as they are stored."""

    factors: Mapping[str, Float64s]
    """`20.mlp.keep` [D, K⁺] and `20.mlp.drop` [D, K⁻], or `20.mlp.shift` [D], of the edited places"""
    spectrum: tuple[PlaceSpectrum, ...]
    """of all places, in order"""

    def of(self, place: str) -> dict[str, Float64s]:
        """Return the factors of an edited place by their last name."""
        return {name.rpartition(".")[2]: it for name, it in self.factors.items() if name.rpartition(".")[0] == place}


def projections_folder(sources: Sequence[Dataset], config: EditConfig, layers: Sequence[int]) -> StoredFolder:
    """Return the folder of the projections, whether or not it exists yet.

    `sources` are the activations of both answers and, with SEA, of neutral answers; or the sums.
    """
    roles = {_role(dataset): dataset.name for dataset in sources}
    settings = {**config.identity(), "layers": list(layers)}
    identity = {"stage_version": STAGE_VERSION, **roles, "config": settings}
    return StoredFolder(sources[0].root, "projections", f"{sources[0].label}-{config.method}", identity)


def _role(dataset: Dataset) -> str:
    if dataset.kind == Kind.ACTIVATION_SUMS:
        return "activation_sums"
    return "activations" if "demonstrations" in dataset.identity else "neutral_activations"


def write_projections(
    folder: StoredFolder, sources: Sequence[Dataset], config: EditConfig, places: Sequence[Place], width: int
) -> FolderManifest:
    """Compute the projections, unless they exist. `places` are all of the model's, which is `width` wide.

    Raises UserError if the demonstrations have no covariance.
    """
    edited = set(folder.identity["config"]["layers"])

    def make(target: StoredFolder, lease: Lease) -> FolderManifest:
        factors: dict[str, Float64s] = {}
        rows: list[PlaceSpectrum] = []
        with track("project", len(places), "places") as advance:
            for place, data in zip(places, _data_of_places(sources, config, len(places), width), strict=True):
                found, row = _project(place, data, config, is_edited=place.layer in edited)
                factors |= {f"{place.name}.{name}": factor for name, factor in found.items()}
                rows.append(row)
                advance(1)
        _write(target.path, factors, rows)
        counts = [dataset.complete_manifest().rows for dataset in sources if dataset.kind == Kind.ACTIVATIONS]
        return target.finish({"demonstrations": counts[0] if counts else _rows_of(data), "width": width}, lease)

    return make_folder(folder, make)


def _write(folder: Path, factors: Mapping[str, Float64s], rows: Sequence[PlaceSpectrum]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(factor) for name, factor in factors.items()}, folder / FACTORS)
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA), folder / SPECTRUM, compression="zstd")


def read_projections(folder: StoredFolder) -> Projections:
    """Read the projections of a complete folder. Raises UserError if it is incomplete or damaged."""
    path = folder.fetch()
    return Projections(load_file(path / FACTORS), read_spectrum(path))


def read_spectrum(folder: Path) -> tuple[PlaceSpectrum, ...]:
    """Return what is known of each place, from a local folder of projections."""
    return tuple(PlaceSpectrum(**row) for row in pq.read_table(folder / SPECTRUM).to_pylist())


def _rows_of(data: Rows | PairSums) -> int:
    return data.rows if isinstance(data, PairSums) else len(data[0])


def _data_of_places(
    sources: Sequence[Dataset], config: EditConfig, places: int, width: int
) -> Iterator[Rows | PairSums]:
    """Yield of each place its rows, if there are fewer than it is wide, or else its sums; with Φ applied.

    Either takes no more memory than the other would.
    """
    if sources[0].kind == Kind.ACTIVATION_SUMS:
        sums = read_sums(sources[0], range(places), width)
        yield from map(PairSums.swapped, sums) if config.swap else sums
        return
    by_side = dict.fromkeys(ANSWERS, sources[0])
    if config.method == "sea":
        by_side["neutral"] = sources[-1]
    shards = (_sides(shard, config) for shard in read_activations(by_side, places))
    if sources[0].complete_manifest().rows < width:
        joined = [np.concatenate(side) for side in zip(*shards, strict=True)]
        for place in range(places):
            yield _mapped(joined, place, config)
        return
    parts = ([PairSums.of(*_mapped(shard, place, config)) for place in range(places)] for shard in shards)
    totals = next(parts)
    for part in parts:
        totals = [add_up(pair) for pair in zip(totals, part, strict=True)]
    yield from totals


def _sides(shard: Mapping[str, Floats], config: EditConfig) -> list[Floats]:
    """Return neutral, positive and negative activations of a shard; a mean shift has no neutral ones."""
    positive, negative = (shard[side] for side in (reversed(ANSWERS) if config.swap else ANSWERS))
    return [shard.get("neutral", positive), positive, negative]


def _mapped(sides: Sequence[Floats], place: int, config: EditConfig) -> Rows:
    values = (torch.from_numpy(each[:, place].astype(np.float64)) for each in sides)
    neutral, positive, negative = (apply_function(config.nonlinearity, each).numpy() for each in values)
    return neutral, positive, negative


def _project(
    place: Place, data: Rows | PairSums, config: EditConfig, *, is_edited: bool
) -> tuple[dict[str, Float64s], PlaceSpectrum]:
    """Return the factors of a place, none if it is not edited, and what is known of it."""
    squares, means = _squares(data), _answer_means(data)
    both: tuple[Spectrum, ...] = ()
    if config.method == "sea":
        both = spectra(data, center=config.center)
        factors = dict(zip(("keep", "drop"), (each.leading(config.energy) for each in both), strict=True))
    else:
        factors = {"shift": config.strength * (means[0] - means[1])}
    massive = massive_channels(squares)
    row = PlaceSpectrum(
        **asdict(place),
        place=place.name,
        edited=is_edited,
        signature=signature(*means, center=config.center),
        positive_rank=factors["keep"].shape[1] if both else None,
        negative_rank=factors["drop"].shape[1] if both else None,
        positive_values=both[0].values[:_MOST_VALUES].tolist() if both else [],
        negative_values=both[1].values[:_MOST_VALUES].tolist() if both else [],
        massive_channels=massive,
        massive_share=float(squares[massive].sum() / squares.sum()) if massive else 0.0,
    )
    return (factors if is_edited else {}), row


def _answer_means(data: Rows | PairSums) -> tuple[Float64s, Float64s]:
    if isinstance(data, PairSums):
        return data.positive / data.rows, data.negative / data.rows
    return data[1].mean(axis=0), data[2].mean(axis=0)


def _squares(data: Rows | PairSums) -> Float64s:
    """[D] the mean square of each channel of neutral activations."""
    squares: Float64s = data.squares / data.rows if isinstance(data, PairSums) else (data[0] ** 2).mean(axis=0)
    return squares


def massive_channels(squares_D: Float64s) -> list[int]:
    """Return the channels whose root mean square is `MASSIVE` times that of the median channel."""
    median = float(np.median(squares_D))
    return [int(channel) for channel in np.flatnonzero(squares_D > MASSIVE**2 * median)] if median else []
