"""Every kind of network in one table. A new one is a name in `settings.NetworkKind`, and an entry in `NETWORKS`."""

from collections.abc import Callable

import torch
from torch import nn

from alm_pipeline.hypernetwork.networks.low_rank import LowRankNetwork
from alm_pipeline.hypernetwork.networks.settings import NetworkConfig, NetworkKind
from alm_pipeline.hypernetwork.networks.transformer import TransformerNetwork


def _low_rank(settings: NetworkConfig, widths: tuple[int, ...]) -> nn.Module:
    return LowRankNetwork(widths, settings.rank)


def _transformer(settings: NetworkConfig, widths: tuple[int, ...]) -> nn.Module:
    return TransformerNetwork(widths, settings.width or widths[0], settings.layers, settings.pieces)


NETWORKS: dict[NetworkKind, Callable[[NetworkConfig, tuple[int, ...]], nn.Module]] = {
    "low_rank": _low_rank,
    "transformer": _transformer,
}


def make_network(settings: NetworkConfig, widths: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Return an untrained network for tables of these widths; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[settings.kind](settings, widths)
