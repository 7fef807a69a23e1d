"""What has been found out about engines, in a folder of this machine: other processes need not find it out again.

No dataset depends on it: without the folder the same is found out again, which takes seconds for a large vocabulary.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from storage.fingerprints import fingerprint

Answer = TypeVar("Answer", bound=BaseModel)


class Findings:
    """Answers by question and subject, in a folder.

    `circumstances` is everything else that an answer depends on, such as the engines' versions: an answer that was
    found under other circumstances is not returned.
    """

    def __init__(self, folder: Path, circumstances: Mapping[str, Any]) -> None:
        self._folder, self._circumstances = folder, dict(circumstances)

    def recall(self, question: str, subject: str, kind: type[Answer]) -> Answer | None:
        """Return the recorded answer, or None. A damaged file is treated as missing."""
        with suppress(OSError, ValueError):
            return kind.model_validate_json(self._file(question, subject).read_bytes())
        return None

    def record(self, question: str, subject: str, answer: Answer) -> Answer:
        """Return the answer, and write it for other processes if the folder is writable."""
        file = self._file(question, subject)
        partial = file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(answer.model_dump_json(), encoding="utf-8")
            partial.replace(file)
        return answer

    def _file(self, question: str, subject: str) -> Path:
        name = fingerprint({"question": question, "subject": subject, "circumstances": self._circumstances})
        return self._folder / f"{name}.json"
