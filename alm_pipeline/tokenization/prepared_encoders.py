"""The encoders that a process has prepared: groups of shards of one dataset that it encodes share an encoder."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from threading import Lock
from typing import Any
from uuid import uuid4

from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.choice import EngineChoice, Trial, choose_engine, is_proven, is_refuted, refute
from alm_pipeline.tokenization.engines.registry import FAST_ENGINES, EngineFactory, machine_findings


class Encoders:
    """Prepared encoders by the name of their tokens dataset, and the fast engines to choose from.

    Loading a tokenizer and proving an engine take seconds, so an encoder is prepared once per process. A pickled
    instance becomes one object in each other process, however often it is sent there, and begins without encoders.
    Threads may share an instance.
    """

    def __init__(self, engines: Mapping[str, EngineFactory] = FAST_ENGINES) -> None:
        self._engines = dict(engines)
        self._key = uuid4().hex
        self._prepared: dict[str, ByteEncoder] = {}
        self._locks: dict[str, AbstractContextManager[Any]] = {}

    def __reduce__(self) -> tuple[Callable[..., "Encoders"], tuple[Any, ...]]:
        return _instance_of_this_process, (self._key, tuple(self._engines.items()))

    def prepared(self, dataset: str) -> ByteEncoder | None:
        """Return the encoder of a dataset, or None.

        It has the standard engine if its engine was found to differ, by this process or another one of this machine.
        """
        encoder = self._prepared.get(dataset)
        if encoder is None or encoder.engine is encoder.standard:
            return encoder
        if is_refuted(encoder.engine, encoder.tokenizer.identity, machine_findings()):
            self.keep(dataset, encoder.with_engine(encoder.standard))
        return self._prepared.get(dataset)

    def preparing(self, dataset: str) -> AbstractContextManager[Any]:
        """Return the lock to hold while an encoder is prepared for a dataset.

        A trial of an engine reads special literals in both ways, with a tokenizer that the threads share: a thread that
        encoded at the same time could get wrong ids.
        """
        return self._locks.setdefault(dataset, Lock())  # atomic, unlike a defaultdict

    def keep(self, dataset: str, encoder: ByteEncoder) -> None:
        """Keep an encoder whose engine is chosen for the dataset's other shards.

        Several threads may use it, so its engine must no longer be tried with other `special_literals`.
        """
        self._prepared[dataset] = encoder

    def drop(self, dataset: str) -> None:
        """Forget the encoder of a dataset that is complete: a vocabulary takes much memory."""
        self._prepared.pop(dataset, None)

    def refute(self, dataset: str, encoder: ByteEncoder, difference: str) -> ByteEncoder:
        """Return and keep the encoder with the standard engine, because its engine gave other ids.

        No process of this machine uses that engine for the tokenizer again.
        """
        refute(encoder.engine, encoder.tokenizer.identity, dataset, difference, machine_findings())
        self.keep(dataset, encoder.with_engine(encoder.standard))
        return self._prepared[dataset]

    def has_proven_engine(self, tokenizer: str) -> bool:
        """Return whether this machine knows one of the engines to be exact for the tokenizer of this identity."""
        return any(is_proven(name, tokenizer, machine_findings()) for name in self._engines)

    def choose(self, encoder: ByteEncoder, trial: Trial) -> EngineChoice:
        """Choose the engine for an encoder by what is found out on this machine, and otherwise by a trial."""
        backend = encoder.tokenizer.encoding_backend
        return choose_engine(backend, encoder.view, encoder.standard, trial, machine_findings(), self._engines)


@lru_cache(maxsize=1)
def _instance_of_this_process(key: str, engines: tuple[tuple[str, EngineFactory], ...]) -> Encoders:
    return Encoders(dict(engines))
