"""Runs of the scoring stage, each under a root of its own, and what they wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.stage import score, scores_dataset
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset
from tests.corpora import text_examples


def tokens_of(shards: Sequence[list[str]], root: Path, tokenizer: str) -> Dataset:
    """Write these texts' tokens."""
    examples = text_examples(root, shards)
    made = tokens_dataset(examples, LoadedTokenizer(tokenizer), None)
    tokenize(examples, made, LoadedTokenizer(tokenizer), None)
    return made


def run(tokens: Dataset, root: Path, teacher: str, **settings: Any) -> Dataset:
    """Score under a root of its own."""
    config = ScoreConfig.model_validate({"dtype": "float32", **settings})
    named = scores_dataset(tokens, ModelReference(teacher), config)
    made = Dataset(str(root), named.kind, named.label, named.identity)
    score(tokens, made, ModelReference(teacher), config)
    return made


def contents(dataset: Dataset) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(dataset.url).iterdir())}
