"""A picture as a PNG. Needs the extra `pictures`: Pillow draws, and fontTools says what a font can show."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alm_pipeline.inspection.fonts import Fonts
from alm_pipeline.inspection.picture import LEGEND, Box, Picture, PicturedChunk
from alm_pipeline.inspection.shards import SIDES

# twice the pixels of a screen, to be sharp on any
_WIDTH, _MARGIN, _PAD, _GAP, _LINE_GAP = 2400, 56, 7, 5, 26
_TOKEN_SIZE, _TEXT_SIZE, _TITLE_SIZE = 25, 29, 40
_TOKEN_HEIGHT, _TEXT_HEIGHT, _ROLE_HEIGHT = 42, 50, 56
_INK, _FAINT, _PAPER = "#1a1a1a", "#5f5f5f", "#ffffff"
# fill and frame, as on the page
_COLORS = {
    "first": ("#cfe8f9", "#4a9fd4"),
    "second": ("#fbe2b0", "#c98a00"),
    "paired": ("#c4ecdf", "#00805d"),
    "unpaired": ("#eeeeee", "#888888"),
}


@dataclass(frozen=True)
class _Column:
    """A chunk, with its tokens in rows that fit the paper."""

    chunk: PicturedChunk
    rows: dict[str, list[list[Box]]]
    width: int


@dataclass(frozen=True)
class _Line:
    """Chunks beside each other, their texts at one height; or the beginning of a turn."""

    columns: list[_Column]
    role: str | None = None

    def rows(self, side: str) -> int:
        return max(len(column.rows[side]) for column in self.columns)

    @property
    def height(self) -> int:
        if self.role is not None:
            return _ROLE_HEIGHT
        return _TEXT_HEIGHT + sum(map(self.rows, SIDES)) * (_TOKEN_HEIGHT + _GAP) + 2 * _PAD + _LINE_GAP


def draw(picture: Picture) -> bytes:
    """The PNG of a picture. Raises ModuleNotFoundError without Pillow or fontTools."""
    from PIL import Image, ImageDraw

    fonts = Fonts()
    lines = _lines(picture.chunks, fonts)
    header = _header(picture)
    footer = [f"{picture.left:,} more chunks are not shown."] if picture.left else []
    height = 2 * _MARGIN + 2 * _ROLE_HEIGHT + sum(line.height for line in lines) + _TEXT_HEIGHT * len(header + footer)
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = _Pen(image, ImageDraw.Draw(image), fonts)
    y = _draw_header(pen, picture, header)
    for line in lines:
        _draw_line(pen, line, y)
        y += line.height
    for text in footer:
        pen.text(_MARGIN, y, _TEXT_HEIGHT, text, _TOKEN_SIZE, _FAINT)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _lines(chunks: Sequence[PicturedChunk], fonts: Fonts) -> list[_Line]:
    lines, columns, room = [], list[_Column](), 0
    for chunk in chunks:
        column = _column(chunk, fonts)
        if columns and (column.width > room or chunk.role is not None):
            lines.append(_Line(columns))
            columns = []
        if chunk.role is not None:
            lines.append(_Line([], chunk.role))
        room = (room if columns else _WIDTH - 2 * _MARGIN) - column.width - _GAP
        columns.append(column)
        if chunk.ends_line:
            lines.append(_Line(columns))
            columns = []
    return [*lines, _Line(columns)] if columns else lines


def _column(chunk: PicturedChunk, fonts: Fonts) -> _Column:
    rows = {side: _flow(chunk.tokens[side], fonts) for side in SIDES}
    widths = [_row_width(row, fonts) for side in SIDES for row in rows[side]]
    text = min(_text_width(chunk.text, fonts), _inner_width())
    return _Column(chunk, rows, max([*widths, text, 20]) + 2 * _PAD)


def _inner_width() -> int:
    return _WIDTH - 2 * _MARGIN - 2 * _PAD


def _text_width(box: Box, fonts: Fonts) -> int:
    return fonts.width(box.label, _TEXT_SIZE) + 2 * _PAD


def _token_width(box: Box, fonts: Fonts) -> int:
    return min(max(fonts.width(box.label, _TOKEN_SIZE) + 2 * _PAD, 26), _inner_width())


def _row_width(row: list[Box], fonts: Fonts) -> int:
    return sum(_token_width(box, fonts) for box in row) + _GAP * (len(row) - 1)


def _flow(boxes: list[Box], fonts: Fonts) -> list[list[Box]]:
    """The boxes in rows no wider than the paper; an empty row where there are none."""
    rows: list[list[Box]] = [[]]
    for box in boxes:
        if rows[-1] and _row_width([*rows[-1], box], fonts) > _inner_width():
            rows.append([])
        rows[-1].append(box)
    return rows


@dataclass(frozen=True)
class _Pen:
    image: Any
    on: Any
    fonts: Fonts

    def box(self, x: int, y: int, width: int, height: int, fill: str, frame: str, line: int = 2) -> None:
        self.on.rounded_rectangle((x, y, x + width - 1, y + height - 1), 6, fill, frame, line)

    def text(self, x: float, y: int, height: int, label: str, size: int, color: str) -> None:
        """One line, in the middle of the height."""
        baseline = y + height / 2 + 0.36 * size
        for face, text in self.fonts.runs(label):
            if face.is_bitmap:
                self._bitmaps(x, baseline, face, text, size)
            else:
                self.on.text((x, baseline), text, fill=color, font=face.sized(size), anchor="ls")
            x += face.width(text, size)

    def centered(self, x: int, y: int, width: int, height: int, label: str, size: int) -> None:
        """One line in the middle of a box; as much of it as fits."""
        while (taken := self.fonts.width(label, size)) > width and len(label) > 1:
            label = label[: max(1, len(label) * width // taken - 2)] + "…"
        self.text(x + (width - taken) / 2, y, height, label, size, _INK)

    def _bitmaps(self, x: float, baseline: float, face: Any, text: str, size: int) -> None:
        from PIL import Image, ImageDraw

        font = face.sized(size)
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        drawn = Image.new("RGBA", (max(1, int(right - left)), max(1, int(bottom - top))))
        ImageDraw.Draw(drawn).text((-left, -top), text, font=font, anchor="ls", embedded_color=True)
        scale = face.width(text, size) / max(1, font.getlength(text))
        small = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))))
        self.image.paste(small, (round(x + left * scale), round(baseline + top * scale)), small)


def _header(picture: Picture) -> list[str]:
    return [
        f"above: teacher’s tokens, {picture.tokenizers['teacher']}",
        f"below: student’s tokens, {picture.tokenizers['student']}",
        " · ".join(picture.facts),
    ]


def _draw_header(pen: _Pen, picture: Picture, header: list[str]) -> int:
    """Draw the header and the legend. Returns where the chunks begin."""
    pen.text(_MARGIN, _MARGIN, _ROLE_HEIGHT, f"example {picture.example}", _TITLE_SIZE, _INK)
    y = _MARGIN + _ROLE_HEIGHT
    for text in header:
        pen.text(_MARGIN, y, _TEXT_HEIGHT - 8, text, _TOKEN_SIZE, _FAINT)
        y += _TEXT_HEIGHT - 8
    x = _MARGIN
    used = {chunk.style for chunk in picture.chunks}
    for style, what in LEGEND.items():
        if style in used:
            pen.box(x, y + 14, 44, 28, *_COLORS[style], 4 if style == "paired" else 2)
            pen.text(x + 54, y, _ROLE_HEIGHT, what, _TOKEN_SIZE, _FAINT)
            x += 54 + pen.fonts.width(what, _TOKEN_SIZE) + 40
    if any(chunk.assistant for chunk in picture.chunks):
        pen.text(x, y, _ROLE_HEIGHT, "underlined: the assistant’s", _TOKEN_SIZE, _FAINT)
    return y + _ROLE_HEIGHT + 24


def _draw_line(pen: _Pen, line: _Line, y: int) -> None:
    if line.role is not None:
        pen.text(_MARGIN, y, _ROLE_HEIGHT - 12, line.role, _TOKEN_SIZE, _FAINT)
        pen.on.line((_MARGIN, y + _ROLE_HEIGHT - 14, _WIDTH - _MARGIN, y + _ROLE_HEIGHT - 14), _FAINT, 2)
        return
    x, text_at = _MARGIN, y + _PAD + line.rows("teacher") * (_TOKEN_HEIGHT + _GAP)
    for column in line.columns:
        _draw_column(pen, column, x, text_at)
        x += column.width + _GAP


def _draw_column(pen: _Pen, column: _Column, x: int, text_at: int) -> None:
    """A chunk with its text at a height, the teacher's tokens above and the student's below."""
    step = _TOKEN_HEIGHT + _GAP
    above, below = (len(column.rows[side]) * step for side in SIDES)
    style = column.chunk.style
    top, height = text_at - above - _PAD, above + _TEXT_HEIGHT + below + 2 * _PAD
    pen.box(x, top, column.width, height, *_COLORS[style], 5 if style == "paired" else 2)
    label, inner = column.chunk.text.label, column.width - 2 * _PAD
    pen.centered(x + _PAD, text_at, inner, _TEXT_HEIGHT, label, _TEXT_SIZE)
    if column.chunk.assistant and label:
        pen.on.line((x + 2 * _PAD, text_at + _TEXT_HEIGHT - 6, x + inner, text_at + _TEXT_HEIGHT - 6), _INK, 3)
    for k, row in enumerate(column.rows["teacher"]):
        _draw_row(pen, row, x + _PAD, text_at - above + k * step, inner)
    for k, row in enumerate(column.rows["student"]):
        _draw_row(pen, row, x + _PAD, text_at + _TEXT_HEIGHT + _GAP + k * step, inner)


def _draw_row(pen: _Pen, row: list[Box], x: int, y: int, width: int) -> None:
    """The boxes, stretched to the whole width."""
    spare = width - _row_width(row, pen.fonts) if row else 0
    for k, box in enumerate(row):
        wide = _token_width(box, pen.fonts) + spare // len(row) + (k < spare % len(row))
        pen.box(x, y, wide, _TOKEN_HEIGHT, _PAPER, "#9a9a9a")
        pen.centered(x, y, wide, _TOKEN_HEIGHT, box.label, _TOKEN_SIZE)
        x += wide + _GAP
