"""The level of new tokens for reports and plans: how much is measured, and its words. Imports nothing heavy."""

from collections.abc import Mapping

ROUNDS = 4
"""passes over the texts at most: each finds what the level still lacks; mostly there are three"""
TOKENS = 2048
"""of a run's texts, at most"""


def level_text(record: Mapping[str, float]) -> str:
    """Say in words what a manifest keeps of a level."""
    lost = f"logits lowered by {record['nats']:.2f} nats"
    if "tokens" not in record:
        return lost
    before, after = record["bits_per_byte_without"], record["bits_per_byte_with"]
    return f"{lost}, measured on {record['tokens']:,.0f} tokens: bits per byte {before:.4f} → {after:.4f}"
