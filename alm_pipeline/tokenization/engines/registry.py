"""The engines that are faster than the standard one. A new engine is a module of this folder and a line here."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import Tokenizer

from alm_pipeline.runtime.versions import installed_version
from alm_pipeline.tokenization.engines.fastokens import FastokensEngine
from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.standard import Engine, StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView
from storage.fingerprints import hash_files
from storage.folders import cache_folder

EngineFactory = Callable[[Tokenizer, ByteView, StandardEngine], Engine]
"""Raises ImportError where the engine's package is not installed, and ValueError where it can't use the tokenizer."""

FAST_ENGINES: Mapping[str, EngineFactory] = {"fastokens": FastokensEngine}
"""Each engine's factory by the name of its package."""


def machine_findings() -> Findings:
    """Return what this machine's processes found out with the installed versions of the engines and of this folder."""
    versions = {package: installed_version(package) for package in ("tokenizers", *FAST_ENGINES)}
    code = hash_files(Path(__file__).parent, ("*.py",))
    return Findings(cache_folder() / "findings", {"versions": versions, "code": code})
