"""Whether the servers serve the teacher as it is configured: each reply says the dtype and the quantization."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.files import is_on_hub, label
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.served.engines import EngineFacts, ScoredRow
from alm_pipeline.scoring.served.replies import Served
from storage.errors import UserError


class ServedCheck:
    """Compares what the rows say with the configuration, and with the first row."""

    served: Served | None = None
    """what is served; None before the first row"""

    def __init__(self, teacher: ModelReference, config: ScoreConfig, facts: Mapping[str, EngineFacts]) -> None:
        """`facts` say, by who answers, what the replies of some engines do not."""
        self._teacher, self._config, self._facts = teacher, config, facts

    def check(self, row: ScoredRow) -> None:
        """Raise UserError if a server serves something else than the first one, or than is configured."""
        served, facts = row.served, self._facts[row.source]
        if served.dtype == "unknown":
            served = served._replace(dtype=facts.dtype)
        if served.quantization == "unknown":
            served = served._replace(quantization=facts.quantization)
        if self.served is None:
            if served.dtype not in (self._config.dtype, "unknown"):
                raise UserError(
                    f"{row.source}: serves the teacher in {served.dtype}, and score.dtype is {self._config.dtype}: set "
                    f"score.dtype to {served.dtype}, or start the server with --dtype {self._config.dtype}"
                )
            self._check_quantization(row.source, served.quantization)
            self.served = served
        elif served != self.served:
            raise UserError(
                f"{row.source}: serves the teacher in {served.dtype} with quantization {served.quantization}, unlike "
                f"the first answer ({self.served.dtype}, {self.served.quantization}): start all servers alike"
            )

    def check_names(self) -> None:
        """Raise UserError if a server names another model, and nothing says that it is the teacher."""
        names = {self._teacher.label, *([] if is_on_hub(self._teacher.name) else [self._teacher.folder.name])}
        for model in {each.model for each in self._facts.values() if each.model}:
            served = Path(model).name
            if not {served, label(served)} & names and not self._config.served.model:
                raise UserError(
                    f"{', '.join(self._config.served.urls)}: serves {model}, and the teacher is {self._teacher.name}: "
                    "if it is the same model, set score.served.model to the name that it is served under"
                )

    def _check_quantization(self, source: str, method: str) -> None:
        asked = self._config.served.quantization
        own = getattr(self._teacher.load_config(), "quantization_config", None)
        if asked and _base(method) not in (_base(asked), "unknown", "other"):
            raise UserError(
                f"{source}: serves the teacher with quantization {method}, and score.served.quantization is {asked}: "
                "start the server with it, or correct the setting"
            )
        if own is not None and method == "none":
            raise UserError(
                f"{source}: serves the teacher without quantization, and the teacher's files are quantized "
                f"({_method_of(own)}): serve these files, or name the model that it serves as the teacher"
            )
        if not asked and own is None and method not in ("none", "unknown"):
            raise UserError(
                f"{source}: quantizes the teacher ({method}), and its files do not: these are other scores, so set "
                f"score.served.quantization to {method}, or start the server without --quantization"
            )


def _method_of(quantization: Any) -> str:
    """Return the method that a model's configuration names."""
    named = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return str(named or getattr(quantization, "quant_method", "by an unknown method"))


def _base(method: str) -> str:
    """Return a method's name without the kernel that computes it."""
    return method.removesuffix("_marlin")
