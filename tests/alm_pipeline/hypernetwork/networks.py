"""Hypernetworks that no training made: with random weights, so that what they predict differs from FVT."""

from pathlib import Path

import torch
from torch import nn

from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork, HypernetworkConfig, HypernetworkSource
from alm_pipeline.hypernetwork.networks.registry import make_network
from alm_pipeline.hypernetwork.networks.settings import NetworkConfig
from alm_pipeline.models.reference import ModelReference

SMALL = {
    "low_rank": NetworkConfig(rank=4),
    "transformer": NetworkConfig(kind="transformer", layers=1, width=16, pieces=3),
}


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return network


def write_hypernetwork(
    folder: Path, model: str, widths: tuple[int, ...] = (32,), kind: str = "low_rank", *, random: bool = True
) -> str:
    """Write a hypernetwork for a model; returns its folder."""
    settings = SMALL[kind]
    network = make_network(settings, widths)
    if random:
        randomize(network)
    source = HypernetworkSource.of(ModelReference(model))
    folder.mkdir()
    Hypernetwork(HypernetworkConfig(source=source, network=settings, widths=widths), network).save(folder)
    return str(folder)
