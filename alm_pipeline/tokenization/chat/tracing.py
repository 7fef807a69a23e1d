"""Where the sections' texts are in a rendered conversation.

The conversation is rendered again with placeholders instead of parts of the texts. What surrounds the placeholders is
the template's own text, the scaffold. The real rendering has to be the scaffold with the parts inserted, each whole or
without white space at its edges; a name, key or value of a tool's call may be spelled in other ways too. Then every
byte is accounted for, and no text can be mistaken for an equal piece of the template.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from alm_pipeline.conversations.json_leaves import Equal, Spelling, escapes
from storage.errors import UserError

_MARKUP = re.compile(r"</?[\w|｜▁:.-]+>|\[/?[A-Z_]+\]")
_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))


class ContentPart(NamedTuple):
    """A stretch of a section's text that one placeholder replaces."""

    section: int
    start: int
    """characters of the section before it"""
    text: str
    spellings: tuple[Spelling, ...] = ()
    """of a name, key or value in a call: what the template may write for it; empty for other texts"""
    is_number: bool = False
    """whether its placeholder is a number, as for a number, true, false or null"""

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class ContentFragment(NamedTuple):
    """A stretch of the rendered text that is part of a section's text. All positions are characters."""

    start: int
    end: int
    section: int
    content_start: int
    """characters of the section's text before it"""


class Occurrence(NamedTuple):
    """A part as the rendered text has it: characters, and what of them equals the part's text."""

    part: int
    start: int
    end: int
    equal: tuple[Equal, ...]


class Trace(NamedTuple):
    """What was found in a rendered text."""

    fragments: list[ContentFragment]
    """in order"""
    strays: list[Occurrence]
    """parts that are written again, or not in the sections' order: the template's own text, which holds their values"""


def placeholders(count: int, *texts: str) -> list[str]:
    """Return `count` different characters that none of the texts contains and no template uses."""
    marks: list[str] = []
    for character in map(chr, _PRIVATE_USE):
        if len(marks) == count:
            return marks
        if not any(character in text for text in texts):
            marks.append(character)
    raise UserError(f"a conversation of {count} parts is too long: there are not enough placeholder characters")


def marks_of(parts: Sequence[ContentPart], *texts: str) -> list[str]:
    """Return a different mark for each part, none of which the texts contain: a character, or a number's digits.

    The marks of keys are in the keys' order, since a template may sort them.
    """
    characters = iter(placeholders(sum(not part.is_number for part in parts), *texts))
    numbers = (str(number) for number in range(900_000_001, 1_000_000_000))
    free = (number for number in numbers if not any(number in text for text in texts))
    in_order = sorted(range(len(parts)), key=lambda index: parts[index].text.lower() if parts[index].spellings else "")
    marks = {index: next(free) if parts[index].is_number else next(characters) for index in in_order}
    return [marks[index] for index in range(len(parts))]


def whole_parts(contents: Sequence[str]) -> list[ContentPart]:
    """Return a part for each whole text, but none for an empty one, since a template may omit its whole turn."""
    return [ContentPart(section, 0, content) for section, content in enumerate(contents) if content]


def split_parts(contents: Sequence[str], markup: re.Pattern[str]) -> list[ContentPart]:
    """Return the parts of the texts between tags of the template, such as `<think>`, without adjacent white space.

    The tags and that white space are not replaced, so the template treats them as in the real rendering.
    """
    return [part for section, content in enumerate(contents) for part in _split(section, content, markup)]


def template_tags(template: str) -> re.Pattern[str]:
    """Return a pattern of the tags in a template's source: the template may split a content at them."""
    tags = sorted(set(_MARKUP.findall(template)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tags)) or r"(?!)")


def _split(section: int, content: str, markup: re.Pattern[str]) -> list[ContentPart]:
    tags = [(0, 0), *(tag.span() for tag in markup.finditer(content)), (len(content),) * 2]
    parts = []
    for (_, start), (end, _) in pairwise(tags):
        text = content[start:end]
        if start > 0:
            start, text = end - len(text.lstrip()), text.lstrip()
        if end < len(content):
            text = text.rstrip()
        if text.strip():
            parts.append(ContentPart(section, start, text))
    return parts


def with_placeholders(contents: Sequence[str], parts: Sequence[ContentPart], marks: Sequence[str]) -> list[str]:
    """Return the contents with each part replaced by its mark."""
    marked = list(contents)
    for part, mark in reversed(list(zip(parts, marks, strict=True))):  # from the end, so that positions stay valid
        marked[part.section] = marked[part.section][: part.start] + mark + marked[part.section][part.end :]
    return marked


def cut_at(scaffold: str, marks: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the text before, between and after the marks, and the index of the mark at each cut."""
    if not marks:
        return [scaffold], []
    index = {written: index for index, mark in enumerate(marks) for written in _written(mark)}
    pieces = re.split(f"({'|'.join(map(re.escape, index))})", scaffold)
    return pieces[::2], [index[mark] for mark in pieces[1::2]]


def _written(mark: str) -> tuple[str, ...]:
    """Return a mark as text, and as JSON that is ASCII only."""
    return (mark, f"\\u{ord(mark):04x}") if len(mark) == 1 and ord(mark) <= 0xFFFF else (mark,)


def trace(
    text: str, scaffold: str, contents: Sequence[str], parts: Sequence[ContentPart], marks: Sequence[str]
) -> Trace | None:
    """Find the parts in a rendered text; None if it isn't the scaffold with the parts inserted.

    Texts have to be written once, in the sections' order; parts of calls that are not are strays.
    """
    pieces, shown = cut_at(scaffold, marks)
    texts = [index for index in shown if not parts[index].spellings]
    if any(left >= right for left, right in pairwise(texts)):
        return None
    placed = _place(text, pieces, [parts[index] for index in shown])
    if placed is None:
        return None
    occurrences = [Occurrence(part, *rest) for part, rest in zip(shown, placed, strict=True)]
    kept = _in_order(occurrences, parts)
    fragments = [fragment for place in kept for fragment in _fragments(occurrences[place], parts)]
    whole = all(part.spellings or len(part.text) == len(contents[part.section]) for part in parts)
    fragments += [] if whole else _between(pieces, contents, parts, occurrences)
    joined = _joined(sorted(fragment for fragment in fragments if fragment.end > fragment.start))
    in_place = set(kept)
    strays = [occurrence for place, occurrence in enumerate(occurrences) if place not in in_place]
    return Trace(joined, strays) if _is_exact(joined, text, contents) else None


def _fragments(occurrence: Occurrence, parts: Sequence[ContentPart]) -> list[ContentFragment]:
    part = parts[occurrence.part]
    return [_fragment(occurrence.start, equal, part.section, part.start) for equal in occurrence.equal]


def _is_exact(fragments: Sequence[ContentFragment], text: str, contents: Sequence[str]) -> bool:
    """Return whether the fragments equal the sections' characters and are in order in both texts."""
    sizes = [end - start for start, end, _, _ in fragments]
    ends = [(section, start + size) for (_, _, section, start), size in zip(fragments, sizes, strict=True)]
    in_order = all(
        left.end <= right.start and end <= (right.section, right.content_start)
        for (left, right), end in zip(pairwise(fragments), ends, strict=False)
    )
    return in_order and all(
        contents[section].startswith(text[start:end], content_start) for start, end, section, content_start in fragments
    )


def _place(
    text: str, pieces: Sequence[str], parts: Sequence[ContentPart]
) -> list[tuple[int, int, tuple[Equal, ...]]] | None:
    """Return the start, the end and what is equal of each part; None if they don't fill the text with the pieces."""
    placed, at = [], len(pieces[0])
    if not text.startswith(pieces[0]):
        return None
    for part, following in zip(parts, pieces[1:], strict=True):
        shown = None if part.spellings else _shown(text, at, part.text, following)
        found = shown or _spelled(text, at, part.spellings or escapes(part.text), following)
        if found is None:
            return None
        size, equal = found
        placed.append((at, at + size, equal))
        at += size + len(following)
    return placed if at == len(text) else None


def _spelled(text: str, at: int, spellings: Sequence[Spelling], following: str) -> tuple[int, tuple[Equal, ...]] | None:
    for spelling in spellings:
        if text.startswith(spelling.text, at) and text.startswith(following, at + len(spelling.text)):
            return len(spelling.text), spelling.equal
    return None


def _shown(text: str, at: int, content: str, following: str) -> tuple[int, tuple[Equal, ...]] | None:
    """Return the number of characters that are shown of a content, which may lack white space at its edges, and which.

    None if what is shown at `at` is not the content.
    """
    skipped, size = _shown_range(text, at, content, following)
    if content[skipped : skipped + size] != text[at : at + size] or not text.startswith(following, at + size):
        return None
    return size, (Equal(0, skipped, size),)


def _shown_range(text: str, at: int, content: str, following: str) -> tuple[int, int]:
    """Return how many characters of the content are omitted before those shown at `at`, and how many are shown."""
    if text.startswith(content, at) and text.startswith(following, at + len(content)):
        return 0, len(content)
    core = content.strip()
    if not core:
        return 0, 0
    lead = _space(text, at)
    end = at + lead + len(core)
    trail = max(0, _space(text, end) - _space(following, 0))
    return max(0, content.index(core) - lead), lead + len(core) + trail


def _in_order(occurrences: Sequence[Occurrence], parts: Sequence[ContentPart]) -> list[int]:
    """Return the places of the occurrences to keep: those in the parts' order that hold the most characters.

    Texts are always kept.
    """
    order = [occurrence.part for occurrence in occurrences]
    if all(left < right for left, right in pairwise(order)):
        return list(range(len(order)))
    # the heaviest chain that ends at each occurrence
    best: list[tuple[int, int]] = []
    for place, part in enumerate(order):
        weight = 1 + len(parts[part].text) if parts[part].spellings else 1 << 32
        before = max(((best[k][0], k) for k in range(place) if order[k] < part), default=(0, -1))
        best.append((before[0] + weight, before[1]))
    place = max(range(len(best)), key=lambda k: best[k][0])
    kept = []
    while place >= 0:
        kept.append(place)
        place = best[place][1]
    return kept[::-1]


_SPACE = re.compile(r"\s*")


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match
    return match.end() - at


def _between(
    pieces: Sequence[str],
    contents: Sequence[str],
    parts: Sequence[ContentPart],
    occurrences: Sequence[Occurrence],
) -> list[ContentFragment]:
    """Return the fragments of tags and white space beside the parts of texts, which were not replaced."""
    starts = [0, *(occurrence.end for occurrence in occurrences)]
    shown = [None if parts[index].spellings else index for index, *_ in occurrences]
    fragments = []
    for start, piece, left, right in zip(starts, pieces, [None, *shown], [*shown, None], strict=True):
        same = left is not None and right == left + 1 and parts[left].section == parts[right].section
        tail = _rest_of_content(contents, parts, left, +1)
        head = _rest_of_content(contents, parts, right, -1)
        following = _matches(_items(piece), _items(tail), whole=same)
        used = max((at + size for at, _, size in following), default=0)
        items = [] if same else [item for item in _items(piece) if item[0] >= used]
        preceding = _matches(items[::-1], _items(head)[::-1], whole=False)
        if left is not None:
            fragments += [_fragment(start, match, parts[left].section, parts[left].end) for match in following]
        if right is not None:
            origin = parts[right].start - len(head)
            fragments += [_fragment(start, match, parts[right].section, origin) for match in preceding]
    return fragments


def _fragment(start: int, equal: Equal, section: int, content_start: int) -> ContentFragment:
    at, content_at, size = equal
    return ContentFragment(start + at, start + at + size, section, content_start + content_at)


def _rest_of_content(contents: Sequence[str], parts: Sequence[ContentPart], index: int | None, step: int) -> str:
    """Return the text between a part and the next (step 1) or previous (step -1) part of its section."""
    if index is None:
        return ""
    part, content = parts[index], contents[parts[index].section]
    near = parts[index + step] if 0 <= index + step < len(parts) else None
    if near is None or near.section != part.section:
        return content[part.end :] if step > 0 else content[: part.start]
    return content[part.end : near.start] if step > 0 else content[near.end : part.start]


_Item = tuple[int, str]


def _items(text: str) -> list[_Item]:
    """Split a text into tags, white space and the stretches between them, each with its position."""
    at, items = 0, []
    for item in re.split(rf"({_MARKUP.pattern}|\s+)", text):
        items += [(at, item)] if item else []
        at += len(item)
    return items


def _matches(rendered: list[_Item], content: list[_Item], whole: bool) -> list[Equal]:
    """Return the items that both begin with, as they are equal. Other white space is skipped.

    White space counts only between items that match, since otherwise it may be the template's own. With `whole`, the
    text reaches from one part to the next, so white space at its end counts too.
    """
    matches: list[Equal] = []
    spaces: list[Equal] = []
    here = there = 0
    while here < len(rendered) and there < len(content):
        (at, left), (content_at, right) = rendered[here], content[there]
        if left == right:
            spaces.append(Equal(at, content_at, len(left)))
            if not left.isspace():
                matches, spaces = matches + spaces, []
        elif not left.isspace() and not right.isspace():
            break
        here += left == right or left.isspace()
        there += left == right or right.isspace()
    complete = whole and here == len(rendered) and there == len(content)
    return matches + spaces if complete else matches


def _joined(fragments: Sequence[ContentFragment]) -> list[ContentFragment]:
    """Join neighbors that continue the same content."""
    joined: list[ContentFragment] = []
    for fragment in fragments:
        last = joined[-1] if joined else None
        if (
            last
            and last[1:3] == (fragment.start, fragment.section)
            and (last.content_start + last.end - last.start == fragment.content_start)
        ):
            joined[-1] = last._replace(end=fragment.end)
        else:
            joined.append(fragment)
    return joined
