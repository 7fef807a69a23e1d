"""Where the messages' contents are in a rendered conversation.

The conversation is rendered again with placeholders instead of parts of the contents. What surrounds the placeholders
is the template's own text, the scaffold. The real rendering has to be the scaffold with the parts inserted, each whole
or without white space at its edges. Then every byte is accounted for, and no content can be mistaken for an equal piece
of the template.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from storage.errors import UserError

_MARKUP = re.compile(r"</?[\w|｜▁:.-]+>|\[/?[A-Z_]+\]")
_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))


class ContentPart(NamedTuple):
    """A stretch of a message's content that one placeholder stands for."""

    message: int
    start: int
    """characters of the content before it"""
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class ContentFragment(NamedTuple):
    """A stretch of the rendered text that is part of a content. All positions are characters."""

    start: int
    end: int
    message: int
    content_start: int
    """characters of the message's content before it"""


def placeholders(count: int, *texts: str) -> list[str]:
    """Return `count` different characters that none of the texts contains and no template uses."""
    marks: list[str] = []
    for character in map(chr, _PRIVATE_USE):
        if len(marks) == count:
            return marks
        if not any(character in text for text in texts):
            marks.append(character)
    raise UserError(f"a conversation of {count} parts is too long: there are not enough placeholder characters")


def whole_parts(contents: Sequence[str]) -> list[ContentPart]:
    """Return a part for each whole content, but none for an empty one, since a template may omit its whole turn."""
    return [ContentPart(message, 0, content) for message, content in enumerate(contents) if content]


def split_parts(contents: Sequence[str], markup: re.Pattern[str]) -> list[ContentPart]:
    """Return the parts of the contents between tags of the template, such as `<think>`, without adjacent white space.

    The tags and that white space are not replaced, so the template treats them as in the real rendering.
    """
    return [part for message, content in enumerate(contents) for part in _split(message, content, markup)]


def template_tags(template: str) -> re.Pattern[str]:
    """Return a pattern of the tags in a template's source: the template may split a content at them."""
    tags = sorted(set(_MARKUP.findall(template)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tags)) or r"(?!)")


def _split(message: int, content: str, markup: re.Pattern[str]) -> list[ContentPart]:
    tags = [(0, 0), *(tag.span() for tag in markup.finditer(content)), (len(content),) * 2]
    parts = []
    for (_, start), (end, _) in pairwise(tags):
        text = content[start:end]
        if start > 0:
            start, text = end - len(text.lstrip()), text.lstrip()
        if end < len(content):
            text = text.rstrip()
        if text.strip():
            parts.append(ContentPart(message, start, text))
    return parts


def with_placeholders(contents: Sequence[str], parts: Sequence[ContentPart], marks: Sequence[str]) -> list[str]:
    """Return the contents with each part replaced by its mark."""
    marked = list(contents)
    for part, mark in reversed(list(zip(parts, marks, strict=True))):  # from the end, so that positions stay valid
        marked[part.message] = marked[part.message][: part.start] + mark + marked[part.message][part.end :]
    return marked


def cut_at(scaffold: str, marks: Sequence[str]) -> tuple[list[str], list[int]] | None:
    """Return the text between the marks, and the indices of the marks; None if they are out of order or repeated."""
    places = [(scaffold.find(mark), index) for index, mark in enumerate(marks) if mark in scaffold]
    if places != sorted(places) or any(scaffold.count(marks[index]) > 1 for _, index in places):
        return None
    edges = [-1, *(place for place, _ in places), len(scaffold)]
    return [scaffold[before + 1 : after] for before, after in pairwise(edges)], [index for _, index in places]


def trace(
    text: str, scaffold: str, contents: Sequence[str], parts: Sequence[ContentPart], marks: Sequence[str]
) -> list[ContentFragment] | None:
    """Return the fragments of contents in order; None if the text isn't the scaffold with the parts inserted."""
    cut = cut_at(scaffold, marks)
    if cut is None:
        return None
    pieces, shown = cut
    placed = _place(text, pieces, [parts[index] for index in shown])
    if placed is None:
        return None
    whole = all(len(part.text) == len(contents[part.message]) for part in parts)
    fragments = placed if whole else placed + _between(pieces, contents, parts, shown, placed)
    joined = _joined(sorted(fragment for fragment in fragments if fragment.end > fragment.start))
    return joined if _is_exact(joined, text, contents) else None


def _is_exact(fragments: Sequence[ContentFragment], text: str, contents: Sequence[str]) -> bool:
    """Return whether the fragments equal the contents' characters and are in order in both texts."""
    sizes = [end - start for start, end, _, _ in fragments]
    ends = [(message, start + size) for (_, _, message, start), size in zip(fragments, sizes, strict=True)]
    in_order = all(
        left.end <= right.start and end <= (right.message, right.content_start)
        for (left, right), end in zip(pairwise(fragments), ends, strict=False)
    )
    return in_order and all(
        contents[message].startswith(text[start:end], content_start) for start, end, message, content_start in fragments
    )


def _place(text: str, pieces: Sequence[str], parts: Sequence[ContentPart]) -> list[ContentFragment] | None:
    fragments, at = [], len(pieces[0])
    if not text.startswith(pieces[0]):
        return None
    for part, following in zip(parts, pieces[1:], strict=True):
        skipped, size = _shown(text, at, part.text, following)
        end = at + size
        if part.text[skipped : skipped + size] != text[at:end] or not text.startswith(following, end):
            return None
        fragments.append(ContentFragment(at, end, part.message, part.start + skipped))
        at = end + len(following)
    return fragments if at == len(text) else None


def _shown(text: str, at: int, content: str, following: str) -> tuple[int, int]:
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


_SPACE = re.compile(r"\s*")


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match
    return match.end() - at


def _between(
    pieces: Sequence[str],
    contents: Sequence[str],
    parts: Sequence[ContentPart],
    shown: Sequence[int],
    placed: list[ContentFragment],
) -> list[ContentFragment]:
    """Return the fragments of tags and white space beside the parts, which were not replaced."""
    starts = [0, *(fragment.end for fragment in placed)]
    fragments = []
    for place, (start, piece) in enumerate(zip(starts, pieces, strict=True)):
        left = shown[place - 1] if place else None
        right = shown[place] if place < len(shown) else None
        same = left is not None and right == left + 1 and parts[left].message == parts[right].message
        tail = _rest_of_content(contents, parts, left, +1)
        head = _rest_of_content(contents, parts, right, -1)
        following = _matches(_items(piece), _items(tail), whole=same)
        used = max((at + size for at, _, size in following), default=0)
        items = [] if same else [item for item in _items(piece) if item[0] >= used]
        preceding = _matches(items[::-1], _items(head)[::-1], whole=False)
        if left is not None:
            fragments += [_fragment(start, match, parts[left].message, parts[left].end) for match in following]
        if right is not None:
            origin = parts[right].start - len(head)
            fragments += [_fragment(start, match, parts[right].message, origin) for match in preceding]
    return fragments


def _fragment(start: int, match: tuple[int, int, int], message: int, content_start: int) -> ContentFragment:
    at, content_at, size = match
    return ContentFragment(start + at, start + at + size, message, content_start + content_at)


def _rest_of_content(contents: Sequence[str], parts: Sequence[ContentPart], index: int | None, step: int) -> str:
    """Return the text between a part and the next (step 1) or previous (step -1) part of its message."""
    if index is None:
        return ""
    part, content = parts[index], contents[parts[index].message]
    near = parts[index + step] if 0 <= index + step < len(parts) else None
    if near is None or near.message != part.message:
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


def _matches(rendered: list[_Item], content: list[_Item], whole: bool) -> list[tuple[int, int, int]]:
    """Return the items that both begin with, as (position, content position, size). Other white space is skipped.

    White space counts only between items that match, since otherwise it may be the template's own. With `whole`, the
    text reaches from one part to the next, so white space at its end counts too.
    """
    matches: list[tuple[int, int, int]] = []
    spaces: list[tuple[int, int, int]] = []
    here = there = 0
    while here < len(rendered) and there < len(content):
        (at, left), (content_at, right) = rendered[here], content[there]
        if left == right:
            spaces.append((at, content_at, len(left)))
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
            and last[1:3] == (fragment.start, fragment.message)
            and (last.content_start + last.end - last.start == fragment.content_start)
        ):
            joined[-1] = last._replace(end=fragment.end)
        else:
            joined.append(fragment)
    return joined
