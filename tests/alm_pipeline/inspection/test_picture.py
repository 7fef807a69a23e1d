"""Pictures: what they show, and that no text can escape its box."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alm_pipeline.alignment.visibility import SEEN_BY
from alm_pipeline.inspection.page import page
from alm_pipeline.inspection.picture import DARK, LEGEND, LIGHT, Box, PicturedChunk, picture, visible
from storage.errors import UserError
from storage.schemas import ChunkKind, TokenKind
from tests.alm_pipeline.inspection.datasets import Chunk, Row, Side, write

EVIL = '<script>alert("x")</script>\u202e&amp;\n'


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b"plain", "plain"),
        (b" \t\n", "␣⇥⏎"),
        ("東".encode()[:2], "⟨E6 9D⟩"),
        ("の".encode() + b"\xe9", "の⟨E9⟩"),
        ("\r\u202e\u200b\u00a0\ue000".encode(), "⟨U+000D⟩⟨U+202E⟩⟨U+200B⟩⟨U+00A0⟩⟨U+E000⟩"),
        ("e\u0301".encode(), "e\u0301"),
        ("\u0301".encode(), "◌\u0301"),
        ("👩\u200d🔬".encode(), "👩\u200d🔬"),
        ("\u200d🔬".encode(), "⟨U+200D⟩🔬"),
        (b"", ""),
    ],
)
def test_labels_spell_out_what_is_invisible(text: bytes, label: str) -> None:
    assert visible(text) == label


def test_every_kind_of_chunk_has_a_style_with_a_meaning_and_colors() -> None:
    chunks = [
        PicturedChunk(kind, number, False, Box("", ""), {}, None, False, seen)
        for kind in ChunkKind
        for number in (0, 1)
        for seen in (None, *SEEN_BY)
    ]
    assert {chunk.style for chunk in chunks} == set(LEGEND) == set(LIGHT.chunks) == set(DARK.chunks)


@pytest.fixture
def url(tmp_path: Path) -> str:
    size = len(EVIL.encode())
    plain = Row(
        "<b>0</b>", EVIL, Side([(7, 0, 3), (8, 3, size - 1), (9, size - 1, size)]),
        Side([(1, 0, size - 1), (2, size - 1, size)]), [Chunk(2, 1, size - 1), Chunk(1, 1, 1)],
    )  # fmt: skip
    tokens = [(3, 0, 0), (4, 0, 0), (5, 0, 2), (6, 2, 2)]
    kinds = [TokenKind.START_OF_TURN, TokenKind.TEMPLATE, TokenKind.CONTENT, TokenKind.END_OF_TURN]
    side = Side(tokens, [int(kind) for kind in kinds], [0] * 4)
    chunks = [
        Chunk(1, 1, 0, ChunkKind.PAIRED),
        Chunk(1, 1, 0, ChunkKind.UNPAIRED),
        Chunk(1, 1, 2, assistant=True),
        Chunk(1, 1, 0, ChunkKind.PAIRED, True),
    ]
    chat = Row("chat", "hi", side, side, chunks, ["assistant"])
    dropped = Row("dropped", "abc", Side(dropped="too_long"), Side([(1, 0, 3)]), [])
    return write(tmp_path, [[dropped, plain, chat]]).url


def test_by_default_the_picture_shows_the_first_example_with_chunks(url: str) -> None:
    shown = picture(url)
    assert (shown.example, shown.left) == ("<b>0</b>", 0)
    assert shown.tokenizers == {"teacher": "teacher", "student": "student"}
    assert [len(chunk.tokens["teacher"]) for chunk in shown.chunks] == [2, 1]
    assert [chunk.style for chunk in shown.chunks] == ["first", "second"]
    assert [chunk.ends_line for chunk in shown.chunks] == [False, True]
    assert shown.chunks[0].tokens["teacher"][0].note == "id 7, bytes 0–3 (3)"
    assert "100.0% of them aligned" in shown.facts


def test_a_picture_of_a_conversation(url: str) -> None:
    shown = picture(url, "chat", chunks=3)
    assert shown.left == 1
    assert [chunk.style for chunk in shown.chunks] == ["paired", "unpaired", "first"]
    assert [chunk.role for chunk in shown.chunks] == ["assistant", None, None]
    assert [chunk.tokens["student"][0].label for chunk in shown.chunks] == ["‹start of turn›", "‹4›", "hi"]
    assert shown.chunks[0].tokens["student"][0].note == "id 3, no bytes, at 0, start of turn"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"example": "dropped"}, "example dropped has no chunks"),
        ({"example": "none"}, "has no example none"),
        ({"shard": 1}, "has no shard 1: it has 1, numbered from 0"),
    ],
)
def test_what_cannot_be_pictured(url: str, choice: dict[str, str | int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        picture(url, **choice)  # type: ignore[arg-type]


class _Page(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.labels: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "bdi":
            self.labels.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "bdi" and self.labels[-1] == "":
            self.labels[-1] = data


def test_a_page_runs_and_fetches_nothing(url: str) -> None:
    content = page(picture(url))
    found = _Page(content)
    assert set(found.tags) <= {
        *("html", "meta", "title", "style", "h1", "header"),
        *("p", "div", "span", "main", "bdi"),
    }
    assert {name for name, _ in found.attributes} <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "title",
    }
    assert re.search(r"url\(|@import|https?:", content) is None
    assert "\u202e" not in content


def test_a_page_shows_the_tokens_above_and_below_the_text(url: str) -> None:
    body = EVIL.removesuffix("\n").replace("\u202e", "⟨U+202E⟩")
    assert _Page(page(picture(url))).labels == [body[:3], body[3:], body, body, "⏎", "⏎", "⏎"]


def test_a_page_counts_the_other_chunks_and_names_the_roles(url: str) -> None:
    content = page(picture(url, "chat", chunks=1))
    assert "3 more chunks are not shown." in content
    assert '<div class="role">assistant</div>' in content
    assert "more chunks" not in page(picture(url, "chat"))


def test_a_drawing_grows_with_its_chunks(url: str) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("fontTools")
    from alm_pipeline.inspection.drawing import draw

    sizes = [image.open(io.BytesIO(draw(picture(url, example)))).size for example in ("<b>0</b>", "chat")]
    assert sizes[0][0] == sizes[1][0] == 2400
    assert sizes[1][1] > sizes[0][1]  # the line of the role
    colors = {color for _, color in image.open(io.BytesIO(draw(picture(url, "chat")))).getcolors(1 << 20)}
    assert {(0xC4, 0xEC, 0xDF), (0xEE, 0xEE, 0xEE), (0xCF, 0xE8, 0xF9)} <= colors
    assert (0xFB, 0xE2, 0xB0) not in colors


def test_what_no_font_contains_is_spelled_out() -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("fontTools")
    from alm_pipeline.inspection.fonts import Fonts

    fonts = Fonts(files=[])
    spelled = {label: "".join(text for _, text in fonts.runs(label)) for label in ("ab", "a東京b", "␣⏎", "東⟩")}
    assert spelled == {"ab": "ab", "a東京b": "a<U+6771 4EAC>b", "␣⏎": "_\\n", "東⟩": "<U+6771>>"}
    assert fonts.width("aa", 20) > fonts.width("a", 20) > 0


def test_broken_font_files_are_passed_over(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("fontTools")
    from alm_pipeline.inspection.fonts import Fonts

    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    assert [text for _, text in Fonts(files=[str(broken)]).runs("東")] == ["<U+6771>"]
