"""No secret passes `masked`, whatever the URL and the text around it; everything else stays readable."""

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from alm_pipeline.config import AlmConfig
from storage.errors import UserError
from storage.printed.secrets import REFERENCE, has_secrets, masked, with_references, without_secrets

S = "hunter2-XYZ"

URLS = {
    f"https://user:{S}@host/a.jsonl": "https://***@host/a.jsonl",
    f"https://user:{S}@@{S}@host/a": "https://***@host/a",
    f"https://user:{S}:{S}@host/a": "https://***@host/a",
    f"https://:{S}@host/a": "https://***@host/a",
    f"https://{S}@host/a": "https://***@host/a",
    f"https://{S}:@host/a": "https://***@host/a",
    f"https://{S}:x-oauth-basic@host/a": "https://***@host/a",
    f"https://üser:{S}ß東@host/a": "https://***@host/a",
    f"https://user:{S}%40x@host/a": "https://***@host/a",
    f"https://user:a/{S}@host/a": "https://***@host/a",
    f"https://user:a?{S}#b@host/a": "https://***@host/a",
    f"https://user:a {S}@host/a": "https://***@host/a",
    f"https://user:a'b\"{S}@host/a": "https://***@host/a",
    f"https://user:a::{S}@host/a": "https://***@host/a",
    f"https://user:{S}@host": "https://***@host",
    f"HTTPS://user:{S}@host:8443/a": "HTTPS://***@host:8443/a",
    f"https://user:{S}@[::1]:8080/a": "https://***@[::1]:8080/a",
    f"https://user:{S}@[fe80::1%25eth0]/a": "https://***@[fe80::1%25eth0]/a",
    f"ftp://user:{S}@host/a": "ftp://***@host/a",
    f"s3://key:{S}@bucket/a@v1/b": "s3://***@bucket/a@v1/b",
    f"abfs://container:{S}@account.dfs.core.windows.net/a": "abfs://***@account.dfs.core.windows.net/a",
    f"//user:{S}@host/a": "//***@host/a",
    f"zip://a.jsonl::https://user:{S}@host/a.zip?sig={S}": "zip://a.jsonl::https://***@host/a.zip?sig=***",
    f"simplecache::s3://key:{S}@bucket/a": "simplecache::s3://***@bucket/a",
    f"filecache::zip://*.csv::ftp://u:{S}@h/a.zip": "filecache::zip://*.csv::ftp://***@h/a.zip",
    f"https://host/a?sig={S}": "https://host/a?sig=***",
    f"https://host/a?x={S}&y={S};z={S}": "https://host/a?x=***&y=***;z=***",
    f"https://host/a?sig={S}&sig={S}": "https://host/a?sig=***&sig=***",
    f"https://host/a?sig=&t={S}": "https://host/a?sig=&t=***",
    f"https://host/a?{S}": "https://host/a?***",
    f"https://host/a?={S}": "https://host/a?=***",
    f"https://host/a?sig={S}%3D%3D": "https://host/a?sig=***",
    f"https://host/a?sig={S}==": "https://host/a?sig=***",
    f"https://host/a?sig%3D{S}": "https://host/a?***",
    f"https://host/a?X-AMZ-SIGNATURE={S}&X-Amz-Credential={S}/eu/s3": (
        "https://host/a?X-AMZ-SIGNATURE=***&X-Amz-Credential=***"
    ),
    f"https://host/a?sv=2024&se=2030&sp=r&sig={S}": "https://host/a?sv=***&se=***&sp=***&sig=***",
    f"https://host/a?sig={S}/b/c?d": "https://host/a?sig=***",
    f"https://host/a?next=https://u:{S}@h/b?t={S}": "https://host/a?next=***",
    f"https://host/a?q[]={S}": "https://host/a?q[]=***",
    f"https://host/a?sig={S}'x": "https://host/a?sig=***",
    f"https://host/a#access_token={S}&b={S}": "https://host/a#access_token=***&b=***",
    f"https://host/a#{S}": "https://host/a#***",
    f"https://host/a?x={S}#y={S}": "https://host/a?x=***#y=***",
    f"https://host?sig={S}": "https://host?sig=***",
    f"https://[::1]:8080?sig={S}": "https://[::1]:8080?sig=***",
    f"hf://user:{S}@datasets/a/b": "hf://***@datasets/a/b",
    f"https://user:{S}%40host/a": "https://***%40host/a",
    f"https://user:{S}%2540host/a": "https://***%2540host/a",
    f"https://host/a%3Fsig%3D{S}%26b%3D{S}": "https://host/a%3F***",
    f"https://host/a%3fsig={S}&b={S}": "https://host/a%3fsig=***&b=***",
    f"https:/user:{S}@host/a?sig={S}": "https:/***@host/a?sig=***",
    f"s3:/key:{S}@bucket/a": "s3:/***@bucket/a",
    f"https://user:${{PW}}@host/a?x={S}&y=${{Y}}": "https://user:${PW}@host/a?x=***&y=${Y}",
}

TEXTS = [
    "{}",
    "see {} and mail a@b.c",
    "({})",
    "[{}].",
    "<{}>",
    "'{}'",
    '"{}", next',
    "`{}`: can't be read",
    "{}: can't be read",
    "403, message='Forbidden', url='{}'",
    "cannot read {}; fix it\nor {} again",
    '<a href="{}">text</a>',
    "ValueError({!r})",
    "{{{!r}: 1}}",
]


@pytest.mark.parametrize(("url", "expected"), URLS.items(), ids=range(len(URLS)))
def test_a_urls_secrets_are_hidden_and_the_rest_stays(url: str, expected: str) -> None:
    assert masked(url) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_secrets_are_hidden_in_any_text(text: str) -> None:
    shown = [masked(text.format(url, url)) for url in URLS]
    assert [line for line in shown if S in line] == []
    assert [line for line in shown if masked(line) != line] == []


def test_secrets_are_hidden_however_a_url_is_encoded() -> None:
    for url in filter(re.compile(".*://").match, URLS):
        encoded = [
            quote(url),
            quote(quote(url)),
            quote(url, safe=":/#"),
            quote(url, safe=""),
            quote(quote(url, safe=""), safe=""),
            json.dumps({"a": url}),
            repr([url]),
        ]
        encoded += [str(Path(url)), f"cannot open {Path(url)!r}"]
        encoded += [json.dumps(url, ensure_ascii=True).replace("/", "\\/"), f"C:/cache/{quote(url, safe='')}.lock"]
        assert [line for line in map(masked, encoded) if S in line] == []


def test_the_rest_of_a_sentence_stays() -> None:
    text = f"both https://u:{S}@h/x?a={S}, and (https://h/y?b={S}). Mail me@host.org!"
    assert masked(text) == "both https://***@h/x?a=***, and (https://h/y?b=***). Mail me@host.org!"


@pytest.mark.parametrize(
    "text",
    [
        "mail a@b.c or <x.y@z.org>",
        "git@github.com:owner/name.git",
        "s3://bucket/path@v1/x",
        "hf://datasets/owner/name@main/data.parquet",
        "abfs://container@account.dfs.core.windows.net/a",
        "https://host:8080/a@b/c.jsonl",
        "https://[::1]:8080/a",
        "memory://",
        "/home/me@work/a?b.jsonl",
        "folder/a?b.jsonl, folder/*?.jsonl and is it so? a=b",
        "error:/home/me@work/a and file:/home/me@work/a",
        "https://host/C%23/b.jsonl and https://host/day%3D1/a%40b.jsonl",
        "a Bearer of a Basic configuration; x-axis: key, x-ray: token",
        r"C:\Users\me@work\a.txt",
        "file:///C:/a@b/c",
        "demo:gemma-3-270m and block:mine/prefix",
        "a // comment for a@b",
        "https://example.org: not found",
        "max_tokens=200, pad_token='<pad>', special_tokens=auto, token=None",
        "tokenizer: the key {'key': 'value'} is wrong; what is a secret?",
        "Unable to locate credentials",
        "is https://host/a? or https://host/b#",
        "https://${LOGIN}@host/a?sig=${SIGNATURE}",
        "teacher 'Qwen/Qwen3-0.6B' at 50 % of 12:30:00",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        f"AWS_SECRET_ACCESS_KEY={S}",
        f"export HF_TOKEN='{S}'; WANDB_API_KEY={S}",
        f"connect(password={S!r}, user='a')",
        f"{{'key': '{S}', 'secret': '{S}', 'anon': False}}",
        f'{{"access_token": "{S}", "client_kwargs": {{"aws_session_token": "{S}"}}}}',
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={S}==;EndpointSuffix=core",
        f"SharedAccessSignature=sv=2024&sig={S}",
        f"headers=<CIMultiDictProxy('Host': 'h', 'Authorization': 'Basic {S}')>",
        f"Authorization: Bearer {S}",
        f"Illegal header value b'Bearer {S}\\n'",
        f"Invalid header value b'Basic {S}=='",
        f"Set-Cookie: session={S}; Secure",
        f"{{'x-goog-signature': '{S}', 'X-Api-Key': '{S}', 'x-ms-copy-source-signature': '{S}'}}",
        f"X-Api-Key: {S}",
        f"404 for folder/a.jsonl?x={S}&y={S}",
        f"host/a.jsonl?x={S}",
        f"Authorization: AWS4-HMAC-SHA256 Credential={S}/eu, Signature={S}",
        f"HTTPSConnectionPool(host='h'): Max retries exceeded with url: /a/b?sig={S} (Caused by x)",
        f'"GET /a?x={S} HTTP/1.1" 403',
    ],
)
def test_other_secrets_of_messages_are_hidden(text: str) -> None:
    assert S not in masked(text)
    assert masked(masked(text)) == masked(text)


def test_settings_lose_the_values_of_secret_names() -> None:
    options: dict[str, Any] = dict.fromkeys(
        ("key", "secret", "token", "password", "connection_string", "account_key", "sas_token", "aws_access_key_id"), S
    )
    options |= {"client_kwargs": {"auth": ("user", S), "headers": {"Authorization": S}, "region_name": "eu"}}
    options |= {
        "anon": False,
        "endpoint_url": f"https://u:{S}@host",
        "urls": [f"https://host/a?b={S}"],
        f"x://{S}@h": 1,
    }
    shown = without_secrets(options)
    assert S not in str(shown)
    assert shown["client_kwargs"]["region_name"] == "eu"
    assert shown["anon"] is False
    assert shown["endpoint_url"] == "https://***@host"


def test_no_field_of_the_configuration_is_taken_for_a_secret(config: AlmConfig) -> None:
    content = config.model_dump(mode="json")
    assert without_secrets(content) == content


@pytest.mark.parametrize("url", [url for url in URLS if "://" in url])
def test_references_take_the_place_of_secrets(url: str) -> None:
    """Put in again, the URL is the same; and the URL with references needs no further masking."""
    content, variables = with_references({"urls": [url, "https://host/a"]})
    assert S not in str(content)
    assert not has_secrets(content)
    assert masked(content["urls"][0]) == content["urls"][0]
    restored = REFERENCE.sub(lambda match: variables.get(match[1], match[0]), content["urls"][0])
    assert restored == url


def test_long_texts_are_masked_in_time() -> None:
    start = time.monotonic()
    for text in (
        "a_" * 10**5,
        "https://" * 10**4,
        "/" * 10**5,
        "https://a:b@" * 10**4,
        "/x?a=" * 10**4,
        "key='" * 10**4,
    ):
        masked(text)
    assert time.monotonic() - start < 60  # quadratic, it would take hours


@pytest.mark.bad_input
@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_a_user_error_holds_no_secret(url: str) -> None:
    error = UserError(f"cannot read {url}: {ValueError(url)!r}")
    assert S not in str(error)
    assert S not in repr(error)
    assert str(UserError(str(error))) == str(error)
