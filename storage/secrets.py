"""Passwords and signatures in URLs: they must not be stored or shown anywhere."""

import re
from typing import Any

LEFT_OUT = "***"
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_PARAMETER = re.compile(r"([?&][^=&\s]*(?:sig|token|key|secret|password|credential)[^=&\s]*=)[^&\s]+", re.I)


def without_secrets(value: Any) -> Any:
    """Return a configuration's plain values without the passwords and signatures in URLs."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return _SECRET_PARAMETER.sub(rf"\1{LEFT_OUT}", _LOGIN.sub(f"{LEFT_OUT}@", value))
    return value
