"""vLLM's entry point. One class computes the logits of all its models, after they are gathered from all GPUs."""

import functools
from typing import Any

from alm_scores.file import PluginError, ServedVocabulary, served_vocabulary
from alm_scores.wrapping import check_parameters, is_wrapped, mark

_PARAMETERS = ("self", "lm_head", "hidden_states", "embedding_bias")


def register() -> None:
    """Wrap vLLM's LogitsProcessor, if ALM_SCORES_FILE names a file. vLLM calls this in each of its processes.

    Raises PluginError, which ends the process, if the file or the class is not what the plugin needs.
    """
    vocabulary = served_vocabulary()
    if vocabulary is None:
        return
    try:
        from vllm.model_executor.layers.logits_processor import LogitsProcessor
    except ImportError as error:
        raise PluginError(
            f"alm-scores: this version of vLLM has no LogitsProcessor where the plugin expects it ({error}): install "
            "a version that docs/how-to/served-teachers.md names"
        ) from error
    wrap(LogitsProcessor, vocabulary)


def wrap(logits_processor: type, vocabulary: ServedVocabulary) -> None:
    """Wrap the class's `forward`, once. Raises PluginError if it takes other parameters."""
    forward = getattr(logits_processor, "forward", None)
    if forward is None:
        raise PluginError("alm-scores: vLLM's LogitsProcessor has no method forward in this version")
    if is_wrapped(forward):
        return
    check_parameters(forward, _PARAMETERS, "vLLM")
    from alm_scores.encoding import Encoder, code, dtype_name  # imports torch

    encode = Encoder(vocabulary)

    @functools.wraps(forward)
    def wrapped(self: Any, lm_head: Any, hidden_states: Any, *args: Any, **settings: Any) -> Any:
        logits_NV = forward(self, lm_head, hidden_states, *args, **settings)
        if logits_NV is None:  # on the ranks of tensor parallelism that the logits are not gathered on
            return None
        # with LoRA enabled, another layer around this one is called in its place
        method = getattr(getattr(self, "base_layer", self), "_alm_quantization", "unknown")
        return encode(logits_NV, code(vocabulary, dtype_name(hidden_states), method))

    mark(wrapped)
    _check_instances(logits_processor, vocabulary)
    logits_processor.forward = wrapped  # type: ignore[attr-defined]


def _check_instances(logits_processor: type, vocabulary: ServedVocabulary) -> None:
    """Let each new instance check its vocabulary, and record how its model is quantized.

    vLLM's configuration is at hand only while the model is built.
    """
    initialize = logits_processor.__init__  # type: ignore[misc]

    @functools.wraps(initialize)
    def wrapped(self: Any, *args: Any, **settings: Any) -> None:
        from vllm.config import get_current_vllm_config

        from alm_scores.encoding import check_width

        initialize(self, *args, **settings)
        check_width(self.org_vocab_size, vocabulary)
        config = get_current_vllm_config().model_config
        self._alm_quantization = None if config is None else config.quantization

    logits_processor.__init__ = wrapped  # type: ignore[misc]
