"""The base class of every configuration model, and the numbers that parameters outside of one take."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

_LARGEST = 2**63 - 1
STORED = "stored"
"""the context in which the configuration of a finished run is validated: what it was made with is taken as it is"""
SEEDS = 2**32
"""the number of seeds: NumPy takes no others"""


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number, not true or false")
    return value


def _fits_64_bits(value: int) -> int:
    if not -_LARGEST <= value <= _LARGEST:
        raise PydanticCustomError("number", "Input should be a number of at most 64 bits")
    return value


def _fits_float32(value: float) -> float:
    if value and not 1e-37 <= abs(value) <= 1e38:
        raise PydanticCustomError("number", "Input should be 0, or a number between 1e-37 and 1e38 in size")
    return value


Real = Annotated[float, AfterValidator(_fits_float32)]
"""a number that is computed with on tensors: beyond the range of float32 it would be infinite there, or 0"""
Number = Annotated[float, AllowInfNan(False), BeforeValidator(_number)]
"""a finite number, as the parameter of a flow"""
Whole = Annotated[int, BeforeValidator(_number), AfterValidator(_fits_64_bits)]
"""a whole number, as the parameter of a flow"""


class Frozen(BaseModel):
    """A configuration that refuses misspelled fields, later changes, and numbers that are NaN or infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, content: Any) -> Any:
        """YAML reads `yes` and `on` as true, which Python takes for the number 1."""
        if not isinstance(content, dict):
            return content
        wrong: list[InitErrorDetails] = [
            {
                "type": PydanticCustomError("number", "Input should be a number, not true or false"),
                "loc": loc,
                "input": it,
            }
            for name, field in cls.model_fields.items()
            if name in content and _takes_numbers(field.annotation)
            for loc, it in _booleans(name, content[name])
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return content

    @field_validator("*", mode="after")
    @classmethod
    def _whole_numbers_fit(cls, value: Any) -> Any:
        return _fits_64_bits(value) if isinstance(value, int) else value


def _takes_numbers(annotation: Any) -> bool:
    """Whether a field takes numbers, or a mapping to numbers, and neither true nor false."""
    types = set(_types(annotation))
    return bool(types & {int, float}) and not types & {bool, Any}


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


def _booleans(name: str, value: Any) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the place and value of each boolean in a field."""
    if isinstance(value, bool):
        yield (name,), value
    elif isinstance(value, Mapping):
        yield from (((name, str(key)), item) for key, item in value.items() if isinstance(item, bool))
