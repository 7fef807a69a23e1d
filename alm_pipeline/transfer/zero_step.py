"""Zero-step transfer: a model with a new tokenizer, without corpus or training.

from alm_pipeline.transfer.zero_step import transfer

print(transfer("demo:smollm2-135m-instruct", "Qwen/Qwen3-0.6B", "smollm2-qwen"))
"""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from alm_pipeline.config import Method, SpecialTokens
from alm_pipeline.models.files import load_tokenizer, quiet_transformers, weights_dtype
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.new_folder import new_folder
from alm_pipeline.new_tokenizer.special_tokens import keeps_source, with_special_tokens
from alm_pipeline.transfer.initialization import Initialization, find_donor
from alm_pipeline.transfer.swap import swap_tokenizer


def transfer(
    source_model: str,
    target_tokenizer: str,
    folder: Path | str,
    *,
    initialization: Method = "fvt",
    special_tokens: SpecialTokens = "auto",
    donor: str | None = None,
    omp_terms: int = 8,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> dict[str, int]:
    """Write the model with the new tokenizer into a new folder, in the model's own precision.

    Models and tokenizers are folders, hub names or `demo:NAME`. The settings are those of `student` in a configuration.
    Returns how many rows of the embedding are copied, composed and drawn. Raises UserError when the folder is there and
    not empty, or the model, the tokenizer or the donor can't be had or don't fit.
    """
    with new_folder(Path(folder)) as written:
        setting = Initialization(
            initialization, find_donor(initialization, donor, target_tokenizer), omp_terms, trust_remote_code
        )
        source = load_tokenizer(source_model)
        target = target_for(source, load_tokenizer(target_tokenizer), special_tokens)
        model = load_model(source_model, weights_dtype(source_model), trust_remote_code=trust_remote_code, device="cpu")
        counts = swap_tokenizer(model, source, target, setting, seed).counts()
        with quiet_transformers():
            model.save_pretrained(written)
            target.save_pretrained(written)
    return counts


def target_for(
    source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, setting: SpecialTokens
) -> PreTrainedTokenizerFast:
    """The target, with the source's special tokens where the setting says so."""
    return with_special_tokens(source, target) if keeps_source(source, target, setting) else target
