"""SGLang's entry point. Written from its source and not run here; docs/how-to/served-teachers.md says what was read."""

from collections.abc import Callable
from typing import Any

from alm_scores.file import PluginError, ServedVocabulary, served_vocabulary
from alm_scores.wrapping import check_parameters, is_wrapped, mark

_TARGET = "sglang.srt.layers.logits_processor.LogitsProcessor._get_logits"
_PARAMETERS = ("self", "hidden_states", "lm_head", "logits_metadata")


def register() -> None:
    """Hook SGLang's LogitsProcessor, if ALM_SCORES_FILE names a file. Raises PluginError, which ends the process."""
    vocabulary = served_vocabulary()
    if vocabulary is None:
        return
    try:
        from sglang.srt.layers.logits_processor import LogitsProcessor
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ImportError as error:
        raise PluginError(
            f"alm-scores: this version of SGLang lacks what the plugin hooks ({error}): install a version that "
            "docs/how-to/served-teachers.md names"
        ) from error
    method = getattr(LogitsProcessor, "_get_logits", None)
    if method is None:
        raise PluginError("alm-scores: SGLang's LogitsProcessor has no method _get_logits in this version")
    if not is_wrapped(method):
        check_parameters(method, _PARAMETERS, "SGLang")
        HookRegistry.register(_TARGET, around(vocabulary), HookType.AROUND)


def around(vocabulary: ServedVocabulary) -> Callable[..., Any]:
    """Return the hook: it is given the method and its arguments. The dtype, the server says itself (/server_info)."""
    from alm_scores.encoding import Encoder, coarse_code  # imports torch

    encode, number = Encoder(vocabulary), coarse_code(vocabulary)

    def hook(get_logits: Callable[..., Any], self: Any, hidden_states: Any, *args: Any, **settings: Any) -> Any:
        logits_NV = get_logits(self, hidden_states, *args, **settings)
        return encode(logits_NV, number)

    mark(hook)
    return hook
