"""What has been found out about engines, in a folder of this machine: other processes need not find it out again.

No dataset depends on it: without the folder the same is found out again, which takes seconds for a large vocabulary.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage.fingerprints import fingerprint

Answer = dict[str, Any]
"""a JSON object"""


class Findings:
    """Answers by question and subject, in a folder.

    `circumstances` is everything else that an answer depends on, such as the engines' versions: an answer that was
    found under other circumstances is not returned.
    """

    def __init__(self, folder: Path, circumstances: Mapping[str, Any]) -> None:
        self._folder, self._circumstances = folder, dict(circumstances)

    def recall(self, question: str, subject: str) -> Answer | None:
        """Return the recorded answer, or None."""
        with suppress(OSError, ValueError):
            answer: Answer = json.loads(self._file(question, subject).read_text(encoding="utf-8"))
            return answer
        return None

    def record(self, question: str, subject: str, answer: Answer) -> Answer:
        """Return the answer, and write it for other processes if the folder is writable."""
        file = self._file(question, subject)
        partial = file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(answer), encoding="utf-8")
            partial.replace(file)
        return answer

    def _file(self, question: str, subject: str) -> Path:
        name = fingerprint({"question": question, "subject": subject, "circumstances": self._circumstances})
        return self._folder / f"{name}.json"
