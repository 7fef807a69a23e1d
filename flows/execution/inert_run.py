"""Flows whose parameters, states and logs hold no secrets, since Prefect's server stores and shows all of them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError, create_model

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.fields.settings import first_sentence
from alm_pipeline.config.fields.spelling import did_you_mean, nearest, nearest_settings, nearest_with_meaning
from alm_pipeline.recipes.overrides import FIELDS
from storage.errors import UserError
from storage.printed.records import has_secret_text, make_output_inert, mask_error
from storage.printed.secrets import has_secrets, masked, without_secrets

P = ParamSpec("P")
R = TypeVar("R")

_FIX = (
    "write ${NAME} in the place of each secret, as in https://${LOGIN}@host/x?sig=${SIGNATURE}, and set these "
    "environment variables where the run works"
)

_OF_PREFECT = frozenset({"return_state", "wait_for"})
"""what the call of any flow takes besides the flow's own parameters"""


class InertFlow(Flow[P, R]):
    """A flow whose parameters reach the server without secrets; a run in this process has them."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        serialized: dict[str, Any] = without_secrets(super().serialize_parameters(parameters))
        return serialized

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override]  # as both overloads return
        with masked_errors():
            self._require_known({name: value for name, value in kwargs.items() if name not in _OF_PREFECT})
        return super().__call__(*args, **kwargs)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Check the parameters. Raises ParameterTypeError naming each wrong one, and the nearest right ones."""
        with masked_errors():
            self._require_known(parameters)
            try:
                return super().validate_parameters(parameters)
            except ParameterTypeError as error:
                if not isinstance(error.__context__, ValidationError):
                    raise
                raise ParameterTypeError(self._wrong_parameters(error.__context__)) from None

    def _require_known(self, parameters: Mapping[str, Any]) -> None:
        known = self.parameters.properties
        meanings = {name: first_sentence(schema.get("description", "")) for name, schema in known.items()}
        if unknown := [name for name in parameters if name not in known]:
            lines = (f"{name}: no such parameter{self._nearest(name, meanings)}" for name in unknown)
            raise ParameterTypeError("\n".join(lines))

    def _nearest(self, name: str, meanings: Mapping[str, str]) -> str:
        """Return the parameters, and the settings of the parameter `settings`, that a wrong name is likely to be."""
        if "settings" not in meanings or nearest(name, meanings):
            return nearest_with_meaning(name, meanings)
        parameters = {field: parameter for parameter, field in FIELDS.items()}
        near = nearest_settings(AlmConfig, [name])
        return did_you_mean({parameters.get(s.path) or f'settings={{"{s.path}": …}}': s.meaning for s in near})

    def _wrong_parameters(self, error: ValidationError) -> str:
        """Return a line for each wrong parameter; the fields of a configuration as everywhere."""
        fields = {name: (item.annotation, ...) for name, item in signature(self.fn, eval_str=True).parameters.items()}
        model = create_model(self.name, **fields)  # type: ignore[call-overload]  # of names that mypy does not know
        return f"these parameters are wrong:\n{wrong_fields(error, model)}"


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
