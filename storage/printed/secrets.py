"""Passwords and signatures in URLs and settings: they must not be printed, logged, stored, sent or raised.

`masked` is the only function that hides them. It looks at how a URL is built, not at a list of known names: everything
before the last `@` of the authority is hidden, and every value in the query and the fragment; the keys and the path
stay readable. Outside of URLs it hides the values of names that can only be secrets (`AWS_SECRET_ACCESS_KEY=…`).

A URL may name environment variables instead of holding secrets: `https://${LOGIN}@host/x?sig=${SIGNATURE}`. They are
put in when the URL is opened, so the URL itself can be stored and sent anywhere.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, unquote

LEFT_OUT = "***"

REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
"""An environment variable in a URL."""

# what ends a quoted or bracketed URL in a text; inside of a password these characters are followed by others
_CLOSING = r"[\"'`>](?=[\s,:;)\]}>.!?\"'`\\]|$)"
_CHARACTER = rf"(?:(?!{_CLOSING})\S)"
# fsspec's chains: zip://a.jsonl::https://host/b.zip
_CHAIN = r"::[A-Za-z][\w+.-]*:"
# also as JSON writes them (https:\/\/), as paths (https:/), and without a scheme
_START = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,30}):\\{0,2}/\\{0,2}/|([A-Za-z][A-Za-z0-9+.-]{1,30}):/|(?<![\w:/\\.])//"
)
# percent-encoded, also several times
_AT = re.compile(r"(.*)(@|%(?:25){0,3}40)", re.DOTALL)
_QUERY_SIGN = re.compile(r"[?]|%(?:25){0,3}3F", re.IGNORECASE)
_AUTHORITY = re.compile(rf"(?:(?!{_CHAIN}|[/?#]|\\/){_CHARACTER})*")
_PATH = re.compile(rf"(?:(?!{_CHAIN}|#|{_QUERY_SIGN.pattern}){_CHARACTER})*", re.IGNORECASE)
_QUERY = re.compile(rf"(?:(?!#){_CHARACTER})*")
_FRAGMENT_SIGN = re.compile("#")
_FRAGMENT = re.compile(rf"{_CHARACTER}*")
_PUNCTUATION = ".,:;!?)]}"
_PORT = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::\d*)?")
# of a password that should have been percent-encoded: it contains / ? # or spaces
_UNENCODED = re.compile(r"((?:(?!://)\S)*|[^/?#\n@]*)(@|%(?:25){0,3}40)")
_SEPARATOR = re.compile(r"([&;])")
# a URL inside of another one, or in a file's name
_ENCODED = re.compile(
    rf"[A-Za-z][A-Za-z0-9+.-]{{0,30}}(?::|(?P<colon>%(?:25){{0,3}}3A))"
    rf"(?:(?:%(?:25){{0,3}}2F){{2}}|(?(colon)//|(?!))){_CHARACTER}*",
    re.IGNORECASE,
)
# a URL's path and query in a message that names the host elsewhere
_RELATIVE = re.compile(rf"(?<![^\s\"'(=])((?:(?!:\\{{0,2}}/|//)[^\s?#=\"'(])+\?)(?=[\w.%~+-]*=)({_CHARACTER}*)")

_NAME = (
    r"(?:secret|(?<![a-z])pass(?:wd|word|phrase)?|password|(?<![a-z])pwd|access_?key(?:_?id)?|secret_?key|account_?key"
    r"|api_?key|private_?key|connection_?string|credentials?|(?<![a-z])sig|signature|(?<!\w)token"
    r"|(?:access|api|auth|hf|hub|id|refresh|sas|security|session)[_-]?token)"
)
_VALUE = r"(?!None\b|True\b|False\b|\*\*\*|\$\{)(?:(?P<quote>\\?[\"'])(?:(?!(?P=quote)).)*(?P=quote)|[^\s,;&\"')\]}]+)"
_ASSIGNMENT = re.compile(rf"({_NAME}(?:\s?=\s?|[\"']\s?=\s?|\\?[\"']\s?:\s?))({_VALUE})", re.IGNORECASE)
_HEADER = re.compile(
    r"((?:authorization|(?<![a-z-])(?:set-)?cookie|(?<![?&;])x-[a-z-]*(?:key|secret|signature|token))"
    r"\\?[\"']?\s*[:=,]\s*\\?[\"']?)[^\"'\n\\]+",
    re.IGNORECASE,
)
# the value of a header in an error that does not name the header
_CREDENTIALS = re.compile(r"(\b(?:Bearer|Basic)\s+)(?=[\w.~+/-]*[\d=])[\w.~+/-]{8,}=*")
_KEY_OF_OPTIONS = re.compile(r"((?P<outer>\\?[\"'])key(?P=outer)\s?:\s?(?P<quote>\\?[\"']))(?:(?!(?P=quote)).)*")
_SECRET_KEY = re.compile(rf".*{_NAME}|key|(?:.*[_-])?auth(?:orization)?|(?:.*[_-])?cookies?", re.IGNORECASE)

# Azure's URLs name the container before the @: abfs://container@account.dfs.core.windows.net
_CONTAINER_SCHEMES = {"abfs", "abfss", "wasb", "wasbs", "az", "adl"}

_VARIABLE = "ALM_URL_SECRET_"
# of an object in S3
_VERSION = re.compile(r"\?versionId=[\w.~-]*$")
# the parameters of S3, Google, Azure, CloudFront and others that sign a URL or limit it in time
_SIGNING = re.compile(
    r"sig|token|secret|pass|pwd|cred|auth|key|hmac|jwt|session|expire|policy|nonce|access|^x-|^q-"
    r"|^(?:s[a-z]|s[a-z]{2}|sk[a-z]+|exp|ts|e|code)$",
    re.IGNORECASE,
)

Hide = Callable[[str], str]


def masked(text: str) -> str:
    """Return a text, such as a URL or a message with URLs in it, without the secrets.

    What it returns does not change when it is masked again. References to environment variables stay.
    """
    text = _ENCODED.sub(_mask_encoded, text)
    text = _hide_in_urls(text, lambda _: LEFT_OUT)
    text = _RELATIVE.sub(lambda match: match[1] + _hide_values(match[2], lambda _: LEFT_OUT), text)
    text = _CREDENTIALS.sub(rf"\1{LEFT_OUT}", _HEADER.sub(rf"\1{LEFT_OUT}", text))
    if re.search(r"[\"']secret", text):
        text = _KEY_OF_OPTIONS.sub(rf"\1{LEFT_OUT}", text)
    return _ASSIGNMENT.sub(_mask_assignment, text)


def without_secrets(value: Any) -> Any:
    """Return plain values (of a configuration, a manifest, a driver's settings) with every text masked.

    In a mapping, values whose names can only be those of secrets are left out: `key`, `secret`, `token`, `password`, …
    """
    if isinstance(value, Mapping):
        return {_masked_key(key): _masked_item(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def has_secrets(value: Any) -> bool:
    """Return whether URLs in plain values hold secrets, and not only references to environment variables."""
    return bool(with_references(value)[1])


def with_references(value: Any) -> tuple[Any, dict[str, str]]:
    """Return plain values whose URLs refer to environment variables, and these variables with the secrets."""
    variables: dict[str, str] = {}
    numbers = count(1)

    def hide(secret: str) -> str:
        name = f"{_VARIABLE}{next(numbers)}"
        variables[name] = secret
        return f"${{{name}}}"

    def convert(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: convert(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [convert(item) for item in part]
        return _hide_in_urls(part, hide) if isinstance(part, str) and "://" in part else part

    return convert(value), variables


def with_secrets(value: Any, variables: Mapping[str, str]) -> Any:
    """Return plain values with the secrets put in again that `with_references` took out."""
    if isinstance(value, dict):
        return {key: with_secrets(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [with_secrets(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    own = {name: secret for name, secret in variables.items() if name.startswith(_VARIABLE)}
    return REFERENCE.sub(lambda match: own.get(match[1], match[0]), value)


def naming_path(path: str) -> str:
    """Return what names a file in the path of a remote file system: no login, no query, no fragment, no version."""
    scheme, host = _places(path)
    if not scheme:
        return _VERSION.sub("", path)
    return path[:scheme] + re.split(r"[?#]", path[host:], maxsplit=1)[0]


def naming_query(path: str) -> str:
    """Return a hash of the parameters in a URL's query that may choose a file; empty if there are none.

    It takes the place of the query where several files of one corpus have the same path, as in `/download?id=1`.
    Parameters that are known to sign a URL are left out, so that the next signature gives the same hash.
    """
    query = path[_places(path)[1] :].partition("#")[0].partition("?")[2]
    chosen = sorted(pair for pair in parse_qsl(query, keep_blank_values=True) if not _SIGNING.search(pair[0]))
    return hashlib.sha256(repr(chosen).encode()).hexdigest()[:8] if chosen else ""


def _places(url: str) -> tuple[int, int]:
    """Return where a URL's scheme ends and where its host begins; 0 for both if it has no scheme."""
    start = _START.match(url)
    return (
        (start.end(), _hide_login(url, start.end(), start[1] or start[2] or "", lambda _: LEFT_OUT)[1])
        if start
        else (0, 0)
    )


def _masked_key(key: Any) -> Any:
    return masked(key) if isinstance(key, str) else key


def _masked_item(key: Any, item: Any) -> Any:
    is_secret = isinstance(key, str) and _SECRET_KEY.fullmatch(key) and item not in (None, "")
    if not is_secret or isinstance(item, bool | float):
        return without_secrets(item)
    return item if isinstance(item, str) and REFERENCE.fullmatch(item) else LEFT_OUT


def _hide_in_urls(text: str, hide: Hide) -> str:
    parts, place = [], 0
    while start := _START.search(text, place):
        parts.append(text[place : start.end()])
        url, place = _hide_in_url(text, start.end(), (start[1] or start[2] or "").lower(), hide)
        parts.append(url)
    return "".join([*parts, text[place:]])


def _hide_in_url(text: str, start: int, scheme: str, hide: Hide) -> tuple[str, int]:
    """Return the URL that goes on at `start`, after its scheme, and the place where it ends."""
    login, end = _hide_login(text, start, scheme, hide)
    path = _matching(_PATH, text, end)
    end += len(path)
    url = login + path
    for sign_pattern, pattern in ((_QUERY_SIGN, _QUERY), (_FRAGMENT_SIGN, _FRAGMENT)):
        if sign := _matching(sign_pattern, text, end):
            values = _matching(pattern, text, end + len(sign))
            end += len(sign) + len(values)
            url += sign + _hide_values(values, hide)
    return url, end


def _hide_login(text: str, start: int, scheme: str, hide: Hide) -> tuple[str, int]:
    """Return the part before the host, without secrets, and the place where the host begins."""
    authority = _matching(_AUTHORITY, text, start)
    login, at = found.groups() if (found := _AT.match(authority)) else ("", "")
    if not at and not _PORT.fullmatch(authority.rstrip(_PUNCTUATION)) and not scheme.startswith("file"):
        # what would be a port is not a number, so it is a password that is not percent-encoded
        login, at = found.groups() if (found := _UNENCODED.match(text, start)) else ("", "")
    if not at:
        return "", start
    name, _, password = login.partition(":")
    is_public = not password and (REFERENCE.fullmatch(name) or (scheme in _CONTAINER_SCHEMES and ":" not in login))
    if is_public or (password and REFERENCE.fullmatch(password)) or login in ("", LEFT_OUT):
        return f"{login}{at}", start + len(login + at)
    return f"{hide(login)}{at}", start + len(login + at)


def _matching(pattern: re.Pattern[str], text: str, start: int) -> str:
    match = pattern.match(text, start)
    return match[0] if match else ""


def _hide_values(values: str, hide: Hide) -> str:
    """Hide the values of `key=value&key=value`; a part without `=` may be a secret as a whole."""
    content = values.rstrip(_PUNCTUATION)
    if re.search(r"\$\{\w+$", content):  # the brace is a reference's own
        content = values[: len(content) + 1]
    hidden = [part if part in "&;" else _hide_value(part, hide) for part in _SEPARATOR.split(content)]
    return "".join(hidden) + values[len(content) :]


def _hide_value(part: str, hide: Hide) -> str:
    key, equals, value = part.partition("=")
    if not equals:
        key, value = "", part
    is_public = value in ("", LEFT_OUT) or REFERENCE.fullmatch(value)
    return part if is_public else f"{key}{equals}{hide(value)}"


def _mask_encoded(match: re.Match[str]) -> str:
    decoded = match[0]
    while (further := unquote(decoded)) != decoded:
        decoded = further
    hidden = masked(decoded)
    return match[0] if hidden == decoded else hidden


def _mask_assignment(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    value = match[2].removeprefix(quote).removesuffix(quote) if quote else match[2]
    is_public = value in ("", LEFT_OUT) or REFERENCE.fullmatch(value)
    return match[0] if is_public else f"{match[1]}{quote}{LEFT_OUT}{quote}"
