"""Opens the configured engine: connects to servers, starts one, or loads vLLM in this process."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.served.client import Client
from alm_pipeline.scoring.served.engines import HttpEngine, RowEngine, RowReader, VllmEngine
from alm_pipeline.scoring.served.server import server_arguments, server_environment, started_server, window_size
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary


@contextmanager
def opened_engine(
    teacher: ModelReference, config: ScoreConfig, vocabulary: ServedVocabulary | None, reader: RowReader
) -> Iterator[tuple[RowEngine, ScoreConfig]]:
    """Yield the engine, and the configuration with the addresses of its servers.

    `vocabulary` is what the plugin has to know; None where hidden states are returned. Raises UserError if the engine
    is not there.
    """
    with ExitStack() as stack:
        if config.engine == "vllm":
            yield _vllm_engine(stack, teacher, config, vocabulary, reader), config
            return
        client, config = _client(stack, teacher, config, vocabulary)
        yield http_engine(client, config, vocabulary, reader), config


def http_engine(
    client: Client, config: ScoreConfig, vocabulary: ServedVocabulary | None, reader: RowReader
) -> HttpEngine:
    """Return an engine of the client's servers. Raises UserError if one of them can't score for the configuration."""
    if config.engine == "sglang":
        assert vocabulary is not None
        return HttpEngine.sglang(client, reader, vocabulary)
    return HttpEngine.vllm(client, reader)


def _client(
    stack: ExitStack, teacher: ModelReference, config: ScoreConfig, vocabulary: ServedVocabulary | None
) -> tuple[Client, ScoreConfig]:
    """Return a client for the configured servers, or for one that is started, and the configuration with addresses."""
    if config.served.urls:
        return stack.enter_context(Client(config.served.urls, config.served)), config
    server = stack.enter_context(started_server(teacher, config, vocabulary))
    served = config.served.model_copy(update={"urls": (server.url,)})
    client = stack.enter_context(Client(served.urls, served, lambda: server.why_gone))
    return client, config.model_copy(update={"served": served})


def _vllm_engine(
    stack: ExitStack,
    teacher: ModelReference,
    config: ScoreConfig,
    vocabulary: ServedVocabulary | None,
    reader: RowReader,
) -> VllmEngine:
    file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alm-served-")), "alm-scores.json")
    if vocabulary is not None:
        vocabulary.write(file)
    os.environ.update(server_environment(config, file))  # vLLM's own processes inherit it
    arguments, longest = server_arguments(teacher, config), window_size(teacher, config)
    return VllmEngine.start(arguments, longest, reader, hidden_states=config.served.hidden_states)
