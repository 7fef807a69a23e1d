"""A causal language model whose activations are edited. This file is part of the model's folder and needs only torch
and transformers: load the folder with `trust_remote_code=True`.

At each edited place (the output of a layer's MLP or attention, or of the whole layer) a token's activation h becomes

    SEA        h′ = y · ‖h‖ / ‖y‖ with y = P h + Q h; P = U Uᵀ keeps, Q = I − V Vᵀ drops (arXiv 2405.09719, 2.3)
    Φ-SEA      the same with y = Φ⁻¹(P Φ(h)) + Φ⁻¹(Q Φ(h))
    mean shift h′ = h + s

Every token is edited by itself: alone, in a batch, and with a cache alike.

Everything else is the architecture's: this file is written with the names of its two classes.

Shapes: D width, K rank.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig as ArchitectureConfig
from transformers import LlamaForCausalLM as Architecture

EDGE = 1e-4
"""how far from the ends of their ranges the inverses of functions are cut"""


class EditedConfig(ArchitectureConfig):
    """The architecture's configuration, with `edits`: a mapping for each edited place.

    `module` is its dotted name; `keep` and `drop` are the ranks of U and V with the `nonlinearity`, or `shift` is true.
    """

    # not the architecture's own type: the model would load without this file, and without its edits
    model_type = "edited"


def apply_function(name: str, values: Tensor) -> Tensor:
    """Return Φ of each value. Raises ValueError for an unknown name of a function."""
    match name:
        case "none":
            return values
        case "squared_exponential":
            return torch.exp(-values.square() / 2)
        case "tanh":
            return torch.tanh(values)
        case "elu":
            return nn.functional.elu(values)
    raise ValueError(f"{name} is not a nonlinearity of an edit")


def apply_inverse(name: str, values: Tensor) -> Tensor:
    """Return Φ⁻¹ of each value, cut `EDGE` before the ends of Φ's range; of the squared exponential, the root ≥ 0."""
    match name:
        case "none":
            return values
        case "squared_exponential":
            return torch.sqrt(-2 * torch.log(values.clamp(EDGE, 1)))
        case "tanh":
            return torch.atanh(values.clamp(-1 + EDGE, 1 - EDGE))
        case "elu":
            return torch.where(values < 0, torch.log1p(values.clamp(-1 + EDGE, 0)), values)
    raise ValueError(f"{name} is not a nonlinearity of an edit")


class Edit(nn.Module):
    """The edit of one place."""

    keep: Tensor
    drop: Tensor
    shift: Tensor

    def __init__(
        self, width: int, keep: int = 0, drop: int = 0, nonlinearity: str = "none", *, shift: bool = False
    ) -> None:
        """Make an edit of zeros: U [D, keep] and V [D, drop], or a `shift` [D]."""
        super().__init__()
        self.nonlinearity, self.shifts = nonlinearity, shift
        if shift:
            self.register_buffer("shift", torch.zeros(width))
        else:
            self.register_buffer("keep", torch.zeros(width, keep))
            self.register_buffer("drop", torch.zeros(width, drop))

    def forward(self, states: Tensor) -> Tensor:
        """[…, D] the edited activations, computed in float32 or better."""
        values = states.to(torch.promote_types(states.dtype, torch.float32))
        if self.shifts:
            values = values + self.shift.to(values)
            return values.to(states.dtype)
        edited = self.projected(values)
        norms: list[Tensor] = [vector.norm(dim=-1, keepdim=True) for vector in (values, edited)]
        # an activation that nothing is left of stays zero
        scales = norms[0] / torch.where(norms[1] > 0, norms[1], 1)
        return (edited * scales).to(states.dtype)

    def projected(self, values: Tensor) -> Tensor:
        """[…, D] y, before the norm is restored."""
        keep, drop = self.keep.to(values), self.drop.to(values)
        mapped = apply_function(self.nonlinearity, values)
        kept, dropped = (mapped @ factor @ factor.T for factor in (keep, drop))
        if self.nonlinearity == "none":
            return kept + mapped - dropped
        return apply_inverse(self.nonlinearity, kept) + apply_inverse(self.nonlinearity, mapped - dropped)


def edit_output(edit: nn.Module, module: nn.Module, inputs: Any, output: Any) -> Any:
    """The forward hook of an edited module, whose output is a tensor, or a tuple or list that begins with one."""
    if isinstance(output, tuple | list):
        return type(output)((edit(output[0]), *output[1:]))
    return edit(output)


class EditedForCausalLM(Architecture):
    """The architecture's model, with edits after some of its modules."""

    config_class = EditedConfig
    # rounded to bfloat16, a projection would let through some of what it drops
    _keep_in_fp32_modules_strict = set(Architecture._keep_in_fp32_modules_strict or ()) | {"edits"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.attach_edits()

    def attach_edits(self) -> None:
        """Add edits of zeros after the configured modules."""
        width = self.config.get_text_config(decoder=True).hidden_size
        settings: Sequence[dict[str, Any]] = self.config.edits
        self.edits = nn.ModuleList(Edit(width, **_without_module(setting)) for setting in settings)
        self._ddp_params_and_buffers_to_ignore = [f"edits.{name}" for name, _ in self.edits.named_buffers()]
        for setting, edit in zip(settings, self.edits, strict=True):
            self.get_submodule(setting["module"]).register_forward_hook(partial(edit_output, edit))


def _without_module(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "module"}
