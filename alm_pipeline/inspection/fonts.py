"""The system's fonts for a picture: each character in the first font that contains it. Needs Pillow and fontTools."""

import functools
import io
import itertools
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts"),
)
# replacements for our own signs if no font contains them
_PLAIN = {"⟨": "<", "⟩": ">", "‹": "<", "›": ">", "␣": "_", "⏎": "\\n", "⇥": "\\t", "◌": "", "·": "|", "–": "-"}
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_BITMAP_SIZE = 109  # the only size of a color font made of bitmaps
_LAST_STYLES = ("bold", "italic", "oblique", "light", "thin", "condensed", "narrow", "black", "medium", "serif", "mono")


class Face:
    """A font file, or the content of one, at any size."""

    def __init__(self, file: str | bytes) -> None:
        from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

        self._file = file
        # TTFont does not close a broken file
        with self._stream() as stream, TTFont(stream, fontNumber=0, lazy=True) as font:
            self.characters = frozenset(map(chr, font.getBestCmap() or {}))
            self.is_bitmap = "CBDT" in font

    @functools.cache  # noqa: B019 a face is needed as long as the picture is drawn
    def sized(self, size: int) -> Any:
        from PIL import ImageFont

        source = self._file if isinstance(self._file, str) else self._stream()
        return ImageFont.truetype(source, _BITMAP_SIZE if self.is_bitmap else size)

    def _stream(self) -> BinaryIO:
        return Path(self._file).open("rb") if isinstance(self._file, str) else io.BytesIO(self._file)

    def width(self, text: str, size: int) -> float:
        scale = size / _BITMAP_SIZE if self.is_bitmap else 1.0
        return scale * float(self.sized(size).getlength(text))


class Fonts:
    """The faces for characters. A font file is opened when a character needs it."""

    def __init__(self, files: list[str] | None = None) -> None:
        from PIL import ImageFont

        self._waiting = _font_files() if files is None else list(files)
        self._opened: list[Face] = []
        # Pillow's font has Latin only, for machines without fonts
        default: Any = ImageFont.load_default(20)
        self._default = Face(default.font_bytes)

    def runs(self, label: str) -> list[tuple[Face, str]]:
        """Split the label into pieces of one face each.

        Characters that no font contains are spelled out: ⟨U+0E01⟩, or in plain letters.
        """
        runs: list[tuple[Face, str]] = []
        for char in self._spelled(label):
            joins = runs and (char in _JOINERS or unicodedata.category(char)[0] == "M")
            face = runs[-1][0] if joins and (char in _JOINERS or char in runs[-1][0].characters) else self._face(char)
            if runs and runs[-1][0] is face:
                runs[-1] = (face, runs[-1][1] + char)
            else:
                runs.append((face or self._default, char))
        return runs

    def width(self, label: str, size: int) -> int:
        return round(sum(face.width(text, size) for face, text in self.runs(label)))

    def _spelled(self, label: str) -> str:
        groups = itertools.groupby(label, self._is_missing)
        return "".join(self._spelling("".join(chars)) if missing else "".join(chars) for missing, chars in groups)

    def _is_missing(self, char: str) -> str | None:
        """Return None if a font contains the character, otherwise the group of characters that it is spelled with."""
        if char in _JOINERS or self._face(char):
            return None
        return char if char in _PLAIN else "other"

    def _spelling(self, chars: str) -> str:
        """Spell characters that no font contains: our own signs in plain letters, others by code point."""
        if chars[0] in _PLAIN:
            return _PLAIN[chars[0]] * len(chars)
        codes = " ".join(f"{ord(char):04X}" for char in chars)
        return "".join(char if self._face(char) else _PLAIN.get(char, "?") for char in f"⟨U+{codes}⟩")

    @functools.cache  # noqa: B019
    def _face(self, char: str) -> Face | None:
        # a text font may contain some emoji in black and white, but the emoji font contains all of them in color
        if ord(char) >= 0x1F000 and (emoji := next((f for f in self._waiting if "emoji" in f.lower()), None)):
            self._open(emoji)
        faces = sorted(self._opened, key=lambda face: face.is_bitmap != (ord(char) >= 0x1F000))
        if face := next((face for face in faces if char in face.characters), None):
            return face
        while self._waiting:
            opened = self._open(self._waiting[0])
            if opened and char in opened.characters:
                return opened
        return self._default if char in self._default.characters else None

    def _open(self, file: str) -> Face | None:
        self._waiting.remove(file)
        try:
            face = Face(file)
            face.sized(20)
        except Exception:  # fontTools and Pillow raise whatever a damaged table leads to
            # a broken or foreign file among the system's fonts must not prevent the drawing
            return None
        self._opened.append(face)
        return face


def _font_files() -> list[str]:
    """Return the system's font files, those for plain text first."""
    paths = [path for folder in _FOLDERS for path in _files(Path(folder).expanduser())]
    return [str(path) for path in sorted(paths, key=_rank)]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc"))


def _rank(path: Path) -> tuple[bool, bool, int, str]:
    name = path.stem.lower()
    styles = sum(style in name for style in _LAST_STYLES)
    return "emoji" in name, not name.startswith(("dejavusans", "noto")), styles, name
