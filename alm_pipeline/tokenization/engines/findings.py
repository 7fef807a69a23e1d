"""What was found out about the fast engine, in this machine's cache folder: other processes need not find it again.

Not the datasets' content: without the folder the same is found again, which takes seconds for a large vocabulary.
"""

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from alm_pipeline.runtime.versions import installed_version
from storage.fingerprints import fingerprint, hash_files
from storage.folders import cache_folder

_DECIDING = ("kitoken", "tokenizers")
"""packages whose other version may find otherwise"""


class Finding:
    """One thing found out: a JSON object, of whatever `about` says in full."""

    def __init__(self, what: str, about: str) -> None:
        versions = {package: installed_version(package) for package in _DECIDING}
        name = fingerprint({"what": what, "about": about, "code": _own_code(), **versions})
        self._file = cache_folder() / "findings" / f"{name}.json"

    def known(self) -> dict[str, Any] | None:
        """What a process of this machine found, or None."""
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            return found
        return None

    def keep(self, found: dict[str, Any]) -> dict[str, Any]:
        """The same, for other processes too, if the folder can be written to."""
        partial = self._file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(found), encoding="utf-8")
            partial.replace(self._file)
        return found


@cache
def _own_code() -> str:
    """What asks the engines, and compares what they say."""
    return hash_files(Path(__file__).parent, ("*.py",))
