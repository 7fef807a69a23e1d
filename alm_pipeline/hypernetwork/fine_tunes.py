"""A fine-tune gets another tokenizer by its base's hypernetwork: the change of the base's rows is added to its own."""

import tempfile
from pathlib import Path

from alm_pipeline.transfer.task_arithmetic import apply_transfer
from alm_pipeline.transfer.zero_step import transfer


def apply_hypernetwork(
    base: str,
    tokenizer: str,
    fine_tune: str,
    folder: Path | str,
    hypernetwork: str,
    *,
    scale: float = 1.0,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Write the fine-tune with this tokenizer into a new folder: FVT's rows of its own, and the base's change of them.

    What the network adds to the base's rows of FVT, and the level that its new tokens get, is added to those of the
    fine-tune, times `scale`; the rest of the fine-tune stays. Raises UserError as `transfer` and `apply_transfer` do.
    """
    with tempfile.TemporaryDirectory() as scratch:
        transferred = Path(scratch) / "transferred"
        transfer(
            base,
            tokenizer,
            transferred,
            initialization="hypernetwork",
            hypernetwork=hypernetwork,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
        settings = {"scale": scale, "seed": seed}
        apply_transfer(base, str(transferred), fine_tune, folder, trust_remote_code=trust_remote_code, **settings)  # type: ignore[arg-type]
