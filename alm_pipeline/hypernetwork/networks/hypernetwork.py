"""A trained hypernetwork: a folder with `config.json` and `model.safetensors`, which belongs to one source model.

Shapes: S source tokens, T new tokens, W channels of a table.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from alm_pipeline.config import Frozen
from alm_pipeline.hypernetwork.networks.pieces import Pieces, SourceTables
from alm_pipeline.hypernetwork.networks.registry import make_network
from alm_pipeline.hypernetwork.networks.settings import NetworkConfig
from alm_pipeline.models.reference import ModelReference
from storage.errors import UserError
from storage.fingerprints import fingerprint
from storage.folders import stored_folder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_AT_ONCE = 4096
"""tokens whose rows are predicted together: 262,144 rows of a large model would not fit beside the model"""


class HypernetworkSource(Frozen):
    """The model whose tables a hypernetwork reads and extends."""

    name: str
    model: str
    """its identity: a hash of its weights, configuration and code"""
    tokenizer: str

    @classmethod
    def of(cls, reference: ModelReference) -> "HypernetworkSource":
        return cls(name=reference.name, model=reference.identity, tokenizer=reference.tokenizer.identity)


class HypernetworkConfig(Frozen):
    """The content of `config.json`."""

    format: int = Field(1, ge=1, le=1)
    source: HypernetworkSource
    network: NetworkConfig
    widths: tuple[int, ...]
    """of the model's tables by token: embedding, head unless it is tied, bias if there is one"""


@dataclass(frozen=True)
class Hypernetwork:
    """A network with what it belongs to."""

    config: HypernetworkConfig
    network: nn.Module
    name: str = "the hypernetwork"
    """for errors"""
    identity: str = ""
    """a hash of both files; empty for one that was not loaded"""

    @classmethod
    def load(cls, url: str) -> "Hypernetwork":
        """Load it from a folder, or from a stored one's URL. Raises UserError for another folder or a damaged file."""
        folder = stored_folder(url).fetch() if "://" in url else Path(url)
        contents = [_read(folder, name) for name in (CONFIG, WEIGHTS)]
        try:
            config = HypernetworkConfig.model_validate(json.loads(contents[0]))
            network = make_network(config.network, config.widths)
            network.load_state_dict(load(contents[1]))
        except (ValidationError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{url}: its {CONFIG} and {WEIGHTS} are not a hypernetwork's, or are damaged "
                f"({str(error).splitlines()[0]}): `alm repair` makes a stored one again, or copy the folder again"
            ) from error
        if not all(value.isfinite().all() for value in network.parameters()):
            raise UserError(f"{folder / WEIGHTS}: has weights that are NaN or infinite: train the hypernetwork again")
        identity = fingerprint({"config": contents[0].decode(), "weights": hashlib.sha256(contents[1]).hexdigest()})
        return cls(config, network.eval().requires_grad_(False), url, identity)

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        text = json.dumps(self.config.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        (folder / WEIGHTS).write_bytes(save(weights(self.network), metadata={"format": "pt"}))

    def require_source(self, reference: ModelReference) -> None:
        """Raise UserError if the model is not the one that the hypernetwork was trained for."""
        own, other = self.config.source, HypernetworkSource.of(reference)
        if own.model != other.model:
            raise UserError(self._refusal(own.model, other, "model") + _FINE_TUNES)
        if own.tokenizer != other.tokenizer:
            raise UserError(self._refusal(own.tokenizer, other, "tokenizer"))

    def _refusal(self, own: str, other: HypernetworkSource, part: str) -> str:
        given = other.model if part == "model" else other.tokenizer
        return (
            f"{self.name}: was trained for the {part} {own[:16]} of {self.config.source.name}, and {other.name} is "
            f"the {part} {given[:16]}: name that model, or train a hypernetwork for this one (alm hypernet)"
        )

    def rows(self, tables: Sequence[Tensor], pieces: Pieces, rows: int) -> list[Tensor]:
        """Return for each table, [S, W] or a bias [S], the rows of T tokens in float32: [T, W] each.

        `rows` are those of the tables that are tokens. Raises UserError if the model's tables have other widths.
        """
        source = SourceTables.of(tables, rows)
        if source.widths != self.config.widths:
            raise UserError(
                f"{self.name}: predicts tables of {_text(self.config.widths)} channels, and the model's have "
                f"{_text(source.widths)}: it was trained for another head (tied, separate, or with a bias)"
            )
        return predict_in_parts(self.network.to(source.standard_SF.device), source, pieces)


_FINE_TUNES = "; a fine-tune of it gets another tokenizer by `alm apply-transfer --hypernetwork`"


def predict(network: nn.Module, source: SourceTables, pieces: Pieces) -> list[Tensor]:
    """Return for each table the rows [T, W] of tokens: the means of their pieces and what the network adds to them."""
    changes = network(source, pieces)
    return [pieces.means(table) + change for table, change in zip(source.tables, changes, strict=True)]


@torch.no_grad()
def predict_in_parts(network: nn.Module, source: SourceTables, pieces: Pieces) -> list[Tensor]:
    """Return what `predict` does, without gradients, of few tokens at a time."""
    parts = [
        predict(network, source, pieces.slice(slice(first, min(first + _AT_ONCE, len(pieces)))))
        for first in range(0, len(pieces), _AT_ONCE)
    ]
    return [torch.cat(of_table) for of_table in zip(*parts, strict=True)]


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters by name, in the processor's memory."""
    return {name: value.detach().cpu().contiguous() for name, value in sorted(network.state_dict().items())}


def _read(folder: Path, name: str) -> bytes:
    file = folder / name
    if not file.is_file():
        raise UserError(
            f"{folder}: is not a hypernetwork's folder (it has no {name}): name a folder hypernetworks/… under a "
            "storage root, which `alm hypernet` writes"
        )
    return file.read_bytes()


def _text(widths: Sequence[int]) -> str:
    return " + ".join(map(str, widths))
