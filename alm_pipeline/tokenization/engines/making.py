"""A proven engine while it is made, which takes seconds for a large vocabulary."""

import logging
from collections.abc import Callable, Sequence
from threading import Thread

from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine

_log = logging.getLogger(__name__)


class EngineInTheMaking:
    """A proven engine, in whose place the standard one encodes until it is made: both give the same ids.

    Making an engine takes seconds for a large vocabulary. A thread of its own does it, while others encode.
    """

    def __init__(self, name: str, make: Callable[[], Engine], standard: StandardEngine) -> None:
        self.name, self._make = name, make
        self._engine: Engine = standard
        self.making = Thread(target=self._replace_standard, name=f"makes {name}")
        """to be started once"""

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        return self._engine.encode(texts, special_literals=special_literals)

    def _replace_standard(self) -> None:
        try:
            self._engine = self._make()
        except Exception as error:  # nothing but speed is lost
            _log.warning("%s is proven to be exact, but can't be used now (%s): tokenizers encodes", self.name, error)
