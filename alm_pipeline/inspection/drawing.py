"""A picture as a PNG. Needs the extra `pictures`: Pillow draws, and fontTools lists the characters of a font."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alm_pipeline.inspection.fonts import Fonts
from alm_pipeline.inspection.picture import ASSISTANT_LEGEND, LIGHT, Box, Picture, PicturedChunk
from alm_pipeline.inspection.shards import SIDES

# in pixels, drawn at twice the usual size so that the picture is sharp on high-resolution screens
_WIDTH, _MARGIN, _PAD, _GAP, _LINE_GAP = 2400, 56, 7, 5, 26
_TOKEN_SIZE, _TEXT_SIZE, _TITLE_SIZE = 25, 29, 40
_TOKEN_HEIGHT, _TEXT_HEIGHT, _ROLE_HEIGHT = 42, 50, 56


@dataclass(frozen=True)
class _Column:
    """A chunk, with its tokens in rows that fit the width of the paper."""

    chunk: PicturedChunk
    rows: dict[str, list[list[Box]]]
    width: int


@dataclass(frozen=True)
class _Line:
    """Chunks side by side, with their texts at the same height; or the role of a turn that begins."""

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
    """Return the PNG of a picture. Raises ModuleNotFoundError without Pillow or fontTools."""
    from PIL import Image, ImageDraw

    fonts = Fonts()
    lines = _lines(picture.chunks, fonts)
    text_lines = len(picture.header + picture.footer)
    height = 2 * _MARGIN + 2 * _ROLE_HEIGHT + sum(line.height for line in lines) + _TEXT_HEIGHT * text_lines
    image = Image.new("RGB", (_WIDTH, height), LIGHT.paper)
    pen = _Pen(image, ImageDraw.Draw(image), fonts)
    y = _draw_header(pen, picture)
    for line in lines:
        _draw_line(pen, line, y)
        y += line.height
    for text in picture.footer:
        pen.text(_MARGIN, y, _TEXT_HEIGHT, text, _TOKEN_SIZE, LIGHT.faint)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _lines(chunks: Sequence[PicturedChunk], fonts: Fonts) -> list[_Line]:
    """Break the chunks into lines that fit the width of the paper."""
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
    """Break the boxes into rows no wider than the paper; without boxes, one empty row."""
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
        """Write a line in the middle of the height."""
        baseline = y + height / 2 + 0.36 * size
        for face, text in self.fonts.runs(label):
            if face.is_bitmap:
                self._bitmaps(x, baseline, face, text, size)
            else:
                self.on.text((x, baseline), text, fill=color, font=face.sized(size), anchor="ls")
            x += face.width(text, size)

    def centered(self, x: int, y: int, width: int, height: int, label: str, size: int) -> None:
        """Write a line in the middle of a box, shortened to its width."""
        while (label_width := self.fonts.width(label, size)) > width and len(label) > 1:
            label = label[: max(1, len(label) * width // label_width - 2)] + "…"
        self.text(x + (width - label_width) / 2, y, height, label, size, LIGHT.ink)

    def _bitmaps(self, x: float, baseline: float, face: Any, text: str, size: int) -> None:
        from PIL import Image, ImageDraw

        font = face.sized(size)
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        drawn = Image.new("RGBA", (max(1, int(right - left)), max(1, int(bottom - top))))
        ImageDraw.Draw(drawn).text((-left, -top), text, font=font, anchor="ls", embedded_color=True)
        scale = face.width(text, size) / max(1, font.getlength(text))
        small = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))))
        self.image.paste(small, (round(x + left * scale), round(baseline + top * scale)), small)


def _draw_header(pen: _Pen, picture: Picture) -> int:
    """Draw the header and the legend. Returns the y position at which the chunks begin."""
    pen.text(_MARGIN, _MARGIN, _ROLE_HEIGHT, picture.title, _TITLE_SIZE, LIGHT.ink)
    y = _MARGIN + _ROLE_HEIGHT
    for text in picture.header:
        pen.text(_MARGIN, y, _TEXT_HEIGHT - 8, text, _TOKEN_SIZE, LIGHT.faint)
        y += _TEXT_HEIGHT - 8
    x = _MARGIN
    for style, meaning in picture.legend.items():
        pen.box(x, y + 14, 44, 28, *LIGHT.chunks[style], 4 if style == "paired" else 2)
        pen.text(x + 54, y, _ROLE_HEIGHT, meaning, _TOKEN_SIZE, LIGHT.faint)
        x += 54 + pen.fonts.width(meaning, _TOKEN_SIZE) + 40
    if picture.has_assistant:
        pen.text(x, y, _ROLE_HEIGHT, f"underlined: {ASSISTANT_LEGEND}", _TOKEN_SIZE, LIGHT.faint)
    return y + _ROLE_HEIGHT + 24


def _draw_line(pen: _Pen, line: _Line, y: int) -> None:
    if line.role is not None:
        pen.text(_MARGIN, y, _ROLE_HEIGHT - 12, line.role, _TOKEN_SIZE, LIGHT.faint)
        pen.on.line((_MARGIN, y + _ROLE_HEIGHT - 14, _WIDTH - _MARGIN, y + _ROLE_HEIGHT - 14), LIGHT.faint, 2)
        return
    x, text_at = _MARGIN, y + _PAD + line.rows("teacher") * (_TOKEN_HEIGHT + _GAP)
    for column in line.columns:
        _draw_column(pen, column, x, text_at)
        x += column.width + _GAP


def _draw_column(pen: _Pen, column: _Column, x: int, text_at: int) -> None:
    """Draw a chunk with its text at y position `text_at`, the teacher's tokens above it and the student's below."""
    step = _TOKEN_HEIGHT + _GAP
    above, below = (len(column.rows[side]) * step for side in SIDES)
    style = column.chunk.style
    top, height = text_at - above - _PAD, above + _TEXT_HEIGHT + below + 2 * _PAD
    pen.box(x, top, column.width, height, *LIGHT.chunks[style], 5 if style == "paired" else 2)
    label, inner = column.chunk.text.label, column.width - 2 * _PAD
    pen.centered(x + _PAD, text_at, inner, _TEXT_HEIGHT, label, _TEXT_SIZE)
    if column.chunk.assistant and label:
        pen.on.line((x + 2 * _PAD, text_at + _TEXT_HEIGHT - 6, x + inner, text_at + _TEXT_HEIGHT - 6), LIGHT.ink, 3)
    for k, row in enumerate(column.rows["teacher"]):
        _draw_row(pen, row, x + _PAD, text_at - above + k * step, inner)
    for k, row in enumerate(column.rows["student"]):
        _draw_row(pen, row, x + _PAD, text_at + _TEXT_HEIGHT + _GAP + k * step, inner)


def _draw_row(pen: _Pen, row: list[Box], x: int, y: int, width: int) -> None:
    """Draw a row of boxes, stretched to the whole width."""
    spare = width - _row_width(row, pen.fonts) if row else 0
    for k, box in enumerate(row):
        wide = _token_width(box, pen.fonts) + spare // len(row) + (k < spare % len(row))
        pen.box(x, y, wide, _TOKEN_HEIGHT, LIGHT.token, LIGHT.token_frame)
        pen.centered(x, y, wide, _TOKEN_HEIGHT, box.label, _TOKEN_SIZE)
        x += wide + _GAP
