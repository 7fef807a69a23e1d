"""The places of a decoder that are read and edited: the outputs of its layers, or of their attention and MLP.

transformers has no common name for a layer's parts, so this module lists the known ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from alm_pipeline.editing.directions.settings import Where
from alm_pipeline.models.configuration import text_config
from alm_pipeline.models.output_head import headless
from storage.errors import UserError

_NAMES = {
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "feedforward", "ff", "mlp_block", "fc2"),
    "attention": (
        "self_attn",
        "attn",
        "attention",
        "self_attention",
        "self_att",
        "linear_attn",
        "mixer",
        "mamba",
        "conv",
        "temporal_block",
    ),
}
"""the names of a layer's parts, in the classes of transformers"""
PARTS: dict[Where, tuple[str, ...]] = {"mlp": ("mlp",), "writes": ("attention", "mlp"), "residual": ("layer",)}


@dataclass(frozen=True)
class Place:
    """A module whose output is read and edited."""

    layer: int
    """from 0"""
    part: str
    """`mlp`, `attention` or `layer`"""
    module: str
    """its dotted name in the model"""

    @property
    def name(self) -> str:
        """The place without the model's own names, such as `20.mlp`."""
        return f"{self.layer}.{self.part}"


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the decoder's layers with their dotted name. Raises UserError if they can't be found."""
    count = getattr(text_config(model.config), "num_hidden_layers", None)
    decoder = headless(model)
    inside = {id(module) for module in decoder.modules()}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in inside
    ]
    if not lists:
        raise UserError(
            f"{model.name_or_path or model.config.model_type}: {type(decoder).__name__} has no list of its {count} "
            "layers: its activations can't be edited"
        )
    return min(lists, key=lambda found: found[0].count("."))


def find_places(model: PreTrainedModel, where: Where) -> list[Place]:
    """Return the places of every layer, in the order in which they are computed.

    Raises UserError, naming the layer's type, if a layer has no part of a known name.
    """
    prefix, layers = decoder_layers(model)
    return [
        Place(number, part, f"{prefix}.{number}{name and '.'}{name}")
        for number, layer in enumerate(layers)
        for part, name in _parts(layer, PARTS[where], number)
    ]


def _parts(layer: nn.Module, parts: Sequence[str], number: int) -> Iterator[tuple[str, str]]:
    children = dict(layer.named_children())
    for part in parts:
        name = "" if part == "layer" else next((name for name in _NAMES[part] if name in children), None)
        if name is None:
            raise UserError(
                f"layer {number}: {type(layer).__name__} has no module that is known as its {part} "
                f"({', '.join(children)}): set where to residual"
            )
        yield part, name


def first_tensor(output: Any) -> Any:
    """Return a module's output, or the first of several."""
    return output[0] if isinstance(output, tuple | list) else output
