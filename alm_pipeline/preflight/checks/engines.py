"""Checks of what scores the teacher besides transformers: vLLM here, or servers."""

import shutil
from importlib.util import find_spec

from alm_pipeline.preflight.context import Context
from alm_pipeline.scoring.served.client import ServerAway
from alm_pipeline.scoring.served_scorer import check_servers
from storage.errors import UserError
from storage.schemas import Kind
from storage.urls import join_url, list_folders

_WAIT_S = 3.0


def engine(context: Context) -> None:
    """The engine that scores is installed, or its servers serve the teacher; not asked if everything is scored."""
    score = context.config.score
    if score.engine == "transformers" or _is_scored(context):
        return
    if score.engine == "vllm":
        _check_vllm(context)
    elif score.served.urls:
        _check_servers(context)
    elif shutil.which(score.served.command[0]) is None:
        context.add(
            "score.served.command",
            f"the command {score.served.command[0]} is not on this machine, and no server is named",
            "install vLLM with plugins/alm-scores, name its command, or set score.served.urls",
        )


def _is_scored(context: Context) -> bool:
    """Whether the teacher's scores are complete, so that no engine is needed."""
    if not list_folders(join_url(context.store, Kind.TEACHER_SCORES)):
        return False
    caches = context.opened("caches", "storage", context.inputs.caches)
    return bool(caches and caches["scores"].manifest())


def _check_vllm(context: Context) -> None:
    needed = {"vllm": "vLLM"}
    if not context.config.score.served.hidden_states:
        needed["alm_scores"] = "the plugin alm-scores"
    for package, name in needed.items():
        if find_spec(package) is None:
            context.add(
                "score.engine",
                f"{name} is not installed in this environment",
                "install vLLM and plugins/alm-scores here, or use the engine http with a server in another environment",
            )


def _check_servers(context: Context) -> None:
    _ = context.teacher_config
    try:
        check_servers(context.teacher, context.config.score, _WAIT_S)
    except ServerAway as error:  # it may be there when the run needs it
        context.add_error(error, "score.served.urls", severity="warning", names_field=False)
    except UserError as error:
        context.add_error(error, "score.served.urls")
