"""Places of texts, at which models predict the next byte: beginnings of characters, drawn at random.

The places of one text are a cluster.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alm_pipeline.calibration.questions import asked_dataset
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.files.errors import BY_TEXT_OPTION, columns_set_by
from alm_pipeline.corpus.formats.layouts import resolve_layout
from alm_pipeline.corpus.sources import open_source
from alm_pipeline.models.tokenizer import LoadedTokenizer, common_forms
from alm_pipeline.recipes.overrides import corpus_at
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.schemas import Kind

STAGE_VERSION = 1
PLACES_PER_SHARD = 256
_MOST_BYTES = 1024
"""of a text that are read"""


class Place(NamedTuple):
    """A place of a text, and the byte that is there. The fields are the dataset's columns."""

    id: str
    before: str
    """the text before the place, at least one character"""
    byte: int
    text: int
    """the number of the text"""


def draw_places(
    url: str, text: str, examples: int, per_text: int, tokenizers: Sequence[LoadedTokenizer], seed: int = 0
) -> list[Place]:
    """Draw places from the first texts of files: at most `per_text` of each, among its first bytes.

    `text` is a column or a template of columns. Texts are in a form that none of the tokenizers changes. Raises
    UserError if no text has two characters.
    """
    corpus = corpus_at(url, {"layout": "text", "text": text, "max_examples": examples})
    forms = common_forms(tokenizers)
    corpus = resolve_layout(corpus, open_source(corpus.source)).model_copy(
        update={"normalize": forms, "max_bytes": _MOST_BYTES}
    )
    with columns_set_by(BY_TEXT_OPTION):
        texts = [example.text for example in iter_examples(corpus, Counter()) if example.text]
    generator = np.random.default_rng(seed)
    drawn = [
        Place(f"{number}-{at}", each[:at], each[at].encode()[0], number)
        for number, each in enumerate(texts)
        for at in sorted(generator.permutation(np.arange(1, len(each)))[:per_text].tolist())
    ]
    if not drawn:
        raise UserError(f"{url}: contains no text of two characters or more")
    return drawn


def places_dataset(root: str, source: str, places: Sequence[Place]) -> Dataset:
    """Return the dataset of these places, whether or not it is written yet; `source` is where they are from."""
    return asked_dataset(root, Kind.PLACES, source, places, STAGE_VERSION, PLACES_PER_SHARD)


def store_places(dataset: Dataset, places: Sequence[Place]) -> Manifest:
    """Write every shard that is not written yet, and return the manifest."""
    if manifest := dataset.manifest():
        return manifest
    shards = [places[start : start + PLACES_PER_SHARD] for start in range(0, len(places), PLACES_PER_SHARD)]
    with dataset.being_written():
        for shard in dataset.missing(range(len(shards))):
            columns = zip(*shards[shard], strict=True)
            dataset.write_shard(shard, dict(zip(Place._fields, map(list, columns), strict=True)), {})
        return dataset.finish(len(shards))
