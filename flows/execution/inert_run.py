"""Flows whose parameters, states and logs hold no secrets, since Prefect's server stores and shows all of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.context import FlowRunContext

from storage.errors import UserError
from storage.printed.records import has_secret_text, make_output_inert, mask_error
from storage.printed.secrets import has_secrets, masked, without_secrets

P = ParamSpec("P")
R = TypeVar("R")

_FIX = (
    "write ${NAME} in the place of each secret, as in https://${LOGIN}@host/x?sig=${SIGNATURE}, and set these "
    "environment variables where the run works"
)


class InertFlow(Flow[P, R]):
    """A flow whose parameters reach the server without secrets; a run in this process has them."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        serialized: dict[str, Any] = without_secrets(super().serialize_parameters(parameters))
        return serialized

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        with masked_errors():
            return super().validate_parameters(parameters)


def inert_flow(name: str, run_name: Callable[[], str]) -> Callable[[Callable[P, R]], InertFlow[P, R]]:
    """Make a flow of a function, whose results the server does not keep."""
    return lambda function: InertFlow(function, name=name, flow_run_name=run_name, persist_result=False)


@contextlib.contextmanager
def inert_run() -> Iterator[None]:
    """Run a flow's body: no secret leaves it in a log record or an error.

    Raises UserError for a deployment's run whose parameters hold secrets: the server has stored them already.
    """
    make_output_inert()
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.deployment_id and has_secrets(_plain(context)):
        raise UserError(f"a parameter has a URL with a password or signature, which the server has stored: {_FIX}")
    with masked_errors():
        yield


def _plain(context: FlowRunContext) -> Any:
    assert context.flow
    return Flow.serialize_parameters(context.flow, context.parameters or {})


def require_no_secrets(parameters: Any, what: str) -> None:
    """Raise UserError if parameters that are sent to another run hold secrets."""
    if has_secrets(parameters):
        raise UserError(f"{what}: a URL with a password or signature would be stored with the other runs: {_FIX}")


@contextlib.contextmanager
def masked_errors() -> Iterator[None]:
    """Take the secrets out of any error inside; its type stays."""
    try:
        yield
    except Exception as error:
        mask_error(error)
        if has_secret_text(error):
            raise RuntimeError(f"{type(error).__name__}: {masked(str(error))}") from None
        raise
