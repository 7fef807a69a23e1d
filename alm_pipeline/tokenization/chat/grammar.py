"""The grammar of a chat template's scaffold: what opens a turn, names its role, ends its header, ends the turn.

It is learnt once, from renderings of short conversations of placeholders. What stands behind the last content of a
truncated conversation and again behind the same content in a longer one closes the turn; the rest, up to the next
content, opens the next turn. Where the openings of user and assistant differ is the role's name. Everything that the
grammar doesn't explain stays `TEMPLATE`: a token left unpaired is safe, a wrong pairing is not.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from storage.schemas import TokenKind

Probe = Callable[[Sequence[str]], list[str] | None]
"""Renders placeholders in these roles: the text before, between and behind them; None where that can't be had."""

_NEVER = re.compile(r"(?!)")
_CONTROL = re.compile(r"<[|｜].*[|｜]>")
_LONGEST_ROLE = 64


class Label(NamedTuple):
    """A stretch of scaffold; positions are characters of the text that was labeled."""

    start: int
    end: int
    kind: TokenKind
    turn: int


class Segment(NamedTuple):
    """A stretch of scaffold from a header (or a content's end) to the next header (or content)."""

    owner: int
    """the message; -1: none"""
    header: re.Match[str] | None
    start: int
    end: int


@dataclass(frozen=True, eq=False)  # an instance is itself: it is part of a cache's key
class Grammar:
    """How a template writes turns; what it lacks is empty, or a pattern that matches nothing."""

    begin: str = ""
    """what begins every text"""
    header: re.Pattern[str] = _NEVER
    """groups: start, role, end; a template whose openings share no beginning has each of them whole as its start"""
    names: Mapping[str, str] = field(default_factory=dict)
    """role → how the template names it; of user and assistant"""
    turn_ends: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """role → what may end its turns; of user and assistant"""
    text_end: str = ""
    """what comes behind the end of the last turn"""

    def label(self, text: str, before: int, behind: int, roles: Sequence[str]) -> list[Label]:
        """Tiles scaffold that stands between the contents of the messages `before` and `behind`.

        `before` is -1 at the start of the text, `behind` is len(roles) at its end; what is between the two is messages
        that show no content.
        """
        shift = max(before, 0)
        labels = _label(self, text, before - shift, behind - shift, tuple(roles[shift : behind + 1]))
        return [label._replace(turn=label.turn + shift) if label.turn >= 0 else label for label in labels]

    def _label(self, text: str, before: int, behind: int, roles: Sequence[str]) -> list[Label]:
        if before == behind:
            return _tiled([], 0, len(text), before)
        begin = len(self.begin) if before == -1 and text.startswith(self.begin) else 0
        labels = [Label(0, begin, TokenKind.BEGIN_OF_TEXT, -1)] if begin else []
        for segment in self._segments(text, begin, before, behind, roles):
            own = self._segment(text, segment, behind, roles) if segment.owner >= 0 else []
            labels += _tiled(own, segment.start, segment.end, segment.owner)
        return labels

    def _segments(self, text: str, begin: int, before: int, behind: int, roles: Sequence[str]) -> list[Segment]:
        headers = list(self.header.finditer(text, begin))
        owners = [before, *self._owners(headers, before, behind, roles)]
        edges = [begin, *(header.start() for header in headers), len(text)]
        return [
            Segment(owner, header, start, end)
            for owner, header, (start, end) in zip(owners, [None, *headers], pairwise(edges), strict=True)
        ]

    def _owners(self, headers: Sequence[re.Match[str]], before: int, behind: int, roles: Sequence[str]) -> list[int]:
        """Each header's message, -1 where it has none (a default system prompt, a header for the next answer).

        The last header before a content is that message's, even if it names another role (a template may write a
        tool's answer under a user's header), unless it names a message in between that shows no content: such a
        message is known by its role's name alone.
        """
        owners = [-1] * len(headers)
        order, messages = range(len(headers)), range(before + 1, min(behind + 1, len(roles)))
        if behind < len(roles):
            order, messages = order[::-1], messages[::-1]
            if len(headers) < len(messages) and headers and not self._is_named(headers[-1], roles[behind]):
                between = [message for message in messages[1:] if self._is_named(headers[-1], roles[message])]
                messages = range(between[0], before, -1) if between else messages
        for index, message in zip(order, messages, strict=False):
            if message != behind and not self._is_named(headers[index], roles[message]):
                break
            owners[index] = message
        return owners

    def _is_named(self, header: re.Match[str], role: str) -> bool:
        return _name(header) == self.names.get(role, role)

    def _segment(self, text: str, segment: Segment, behind: int, roles: Sequence[str]) -> list[Label]:
        """What has a role in a segment that is some message's."""
        opening, start = [], segment.start
        if segment.header:
            opening, start = self._header(segment.header, segment.owner, roles), segment.header.end()
        if segment.owner == behind:
            return opening
        return opening + self._closings(text, start, segment.end, segment.owner, behind, roles)

    def _header(self, header: re.Match[str], owner: int, roles: Sequence[str]) -> list[Label]:
        groups = {"start": TokenKind.START_OF_TURN, "role": TokenKind.ROLE, "end": TokenKind.END_OF_HEADER}
        labels = [Label(*header.span(name), groups[name], owner) for name, part in header.groupdict().items() if part]
        # a role that the template has no name for may be named in any way but as user or assistant
        own = self._is_named(header, roles[owner])
        if own or (roles[owner] not in self.names and _name(header) not in self.names.values()):
            return labels
        return [label for label in labels if label.kind != TokenKind.ROLE]

    def _closings(self, text: str, start: int, end: int, owner: int, behind: int, roles: Sequence[str]) -> list[Label]:
        """The ends of the owner's turn, and of the next one's if that has neither content nor header."""
        at = self._turn_end(text, start, end, owner, roles)
        if at is None:
            return []
        labels = [Label(*at, TokenKind.END_OF_TURN, owner)]
        following = owner + 1
        if following < min(behind, len(roles)) and self.names and roles[following] not in self.names:
            at_next = self._turn_end(text, at[1], end, following, roles)
            if at_next:
                labels.append(Label(*at_next, TokenKind.END_OF_TURN, following))
        rest = labels[-1].end
        if behind == len(roles) and self.text_end and text[rest:end].strip() == self.text_end:
            rest = text.index(self.text_end, rest)
            labels.append(Label(rest, rest + len(self.text_end), TokenKind.END_OF_TEXT, len(roles) - 1))
        return labels

    def _turn_end(self, text: str, start: int, end: int, owner: int, roles: Sequence[str]) -> tuple[int, int] | None:
        """Right behind the content, or else behind what the template adds to it, where nothing but space follows."""
        ends = self.turn_ends.get(roles[owner], _flat(self.turn_ends))
        literals = "|".join(map(re.escape, sorted(ends, key=len, reverse=True)))
        if not literals:
            return None
        near = re.compile(rf"\s*({literals})").match(text, start, end)
        tail = rf"(?:{re.escape(self.text_end)}\s*)?" if self.text_end else ""
        match = near or re.compile(rf"({literals})\s*{tail}\Z").search(text, start, end)
        return match.span(1) if match else None


@lru_cache(maxsize=1024)
def _label(grammar: Grammar, text: str, before: int, behind: int, roles: tuple[str, ...]) -> list[Label]:
    """Scaffold repeats itself from conversation to conversation."""
    return grammar._label(text, before, behind, roles)


def _name(header: re.Match[str]) -> str:
    return header.groupdict().get("role") or header["start"]


def _tiled(labels: Iterable[Label], start: int, end: int, turn: int) -> list[Label]:
    """The labels with template text around them."""
    tiled, at = [], start
    for label in labels:
        tiled += [Label(at, label.start, TokenKind.TEMPLATE, turn), label]
        at = label.end
    tiled.append(Label(at, end, TokenKind.TEMPLATE, turn))
    return [label for label in tiled if label.end > label.start]


def control_tokens(added: Iterable[tuple[str, bool]]) -> list[str]:
    """The added tokens (content, flagged special) that a template may use; some look like it without being flagged."""
    return [content for content, special in added if content and (special or _CONTROL.fullmatch(content))]


Items = tuple[str, ...]


def learn(probe: Probe, controls: Iterable[str], begin_of_text: str | None) -> Grammar:
    """The template's grammar, of what it renders for the usual roles; an empty one where it refuses them."""
    turns, user, answered = probe(["user", "assistant"] * 2), probe(["user"]), probe(["user", "assistant"])
    system = probe(["system", "user", "assistant"])
    if turns is None or user is None or answered is None:
        return Grammar()
    texts = [*turns, *user, *answered, *(system or [])]
    used = sorted({control for control in controls if any(control in text for text in texts)}, key=len, reverse=True)
    return _Learner(used).grammar(turns, user[-1], answered[-1], system, begin_of_text)


@dataclass(frozen=True)
class _Learner:
    """Works on items, which are control tokens and single other characters: no comparison cuts a control token."""

    controls: Sequence[str]

    def items(self, text: str) -> Items:
        return tuple(re.findall("|".join([*map(re.escape, self.controls), "."]), text, re.DOTALL))

    def grammar(
        self, turns: list[str], user_end: str, answer_end: str, system: list[str] | None, begin_of_text: str | None
    ) -> Grammar:
        first, to_answer, to_user = map(self.items, turns[:3])
        ends = self.unprompted(to_answer, to_user, self.items(user_end), self.items(answer_end))
        closings = self.closings(to_answer, to_user, *ends)
        openings = _stripped(to_user[len(closings[1]) :]), _stripped(to_answer[len(closings[0]) :])
        begin = self.begin(first, openings[0], {*to_answer, *to_user}, begin_of_text)
        if set(self.controls).intersection(*map(set, ((*openings[0], *openings[1]), (*closings[0], *closings[1])))):
            return Grammar(begin)  # a token that opens turns and closes them: the cut is at the wrong place
        turn_ends = {
            role: self.turn_ends(closing, end)
            for role, closing, end in zip(("user", "assistant"), closings, ends, strict=True)
        }
        header, names = self.headers(openings, turn_ends) or self.whole_openings(openings, turn_ends, system, begin)
        return Grammar(begin, header, names, turn_ends, self.end_of_text(ends[1], closings[1]))

    def unprompted(self, to_answer: Items, to_user: Items, user_end: Items, answer_end: Items) -> tuple[Items, Items]:
        """The ends of truncated conversations, without an answer's header where the template always writes one."""
        prompt = _common_end(user_end, answer_end)
        if user_end != to_answer or not "".join(prompt).strip():
            return user_end, answer_end
        if user_end != answer_end:
            return user_end[: -len(prompt)], answer_end[: -len(prompt)]
        # user and assistant end in one way; their headers begin alike, with a control token, or are one each
        shared = _common(to_answer, to_user)
        tokens = [index for index, item in enumerate(shared) if item in self.controls]
        opens = to_answer[len(shared) : len(shared) + 1]
        closing = shared if opens and opens[0] in self.controls else shared[: tokens[-1] if tokens else 0]
        return closing, closing

    def closings(self, to_answer: Items, to_user: Items, user_end: Items, answer_end: Items) -> tuple[Items, Items]:
        """What closes a user's and an assistant's turn, with the white space behind it."""
        user, assistant = _common(to_answer, user_end), _common(to_user, answer_end)
        # a last turn may be ended by a token of its own
        if not user and to_answer[: len(assistant)] == assistant:
            user = assistant
        if not assistant and to_user[: len(user)] == user:
            assistant = user
        return user, assistant

    def begin(self, first: Items, opening: Items, inner: set[str], begin_of_text: str | None) -> str:
        """What begins a text: control tokens alone before the first turn, or the tokenizer's own token for it."""
        rest = first[: len(first) - len(opening)] if opening and first[-len(opening) :] == opening else ()
        if rest and all(item in self.controls for item in rest):
            return "".join(rest)
        return first[0] if first and first[0] == begin_of_text and first[0] not in inner else ""

    def turn_ends(self, closing: Items, last_closing: Items) -> list[str]:
        """What ends a turn, and what ends it as the text's last one where that is something else."""
        usual = self.end_of_turn(closing)
        last = "" if usual and usual in "".join(last_closing) else self.end_of_turn(last_closing)
        return [end for end in (usual, last) if end]

    def end_of_turn(self, closing: Items) -> str:
        """The last control tokens in a row; the text without its white space where there are none."""
        tokens = [index for index, item in enumerate(closing) if item in self.controls]
        if not tokens:
            return "".join(closing).strip()
        start = tokens[-1]
        while start - 1 in tokens:
            start -= 1
        return "".join(closing[start : tokens[-1] + 1])

    def end_of_text(self, answer_end: Items, closing: Items) -> str:
        """Control tokens behind the last turn's closing."""
        rest = _stripped(answer_end[len(_common(answer_end, closing)) :])
        follows = "".join(closing).strip() and answer_end[: len(_stripped_end(closing))] == _stripped_end(closing)
        text = "".join(rest).strip()
        return text if follows and set(self.items(text)) <= set(self.controls) else ""

    def headers(
        self, openings: tuple[Items, Items], turn_ends: Mapping[str, Sequence[str]]
    ) -> tuple[re.Pattern[str], dict[str, str]] | None:
        """Headers of a common beginning, a name and a common end; None where the openings are no such headers."""
        start = _common(*openings)
        while start and start[-1].isalnum():  # two names that begin alike
            start = start[:-1]
        rests = [opening[len(start) :] for opening in openings]
        end = _common_end(*rests)
        while end and end[0].isalnum():
            end = end[1:]
        user, assistant = (self.name(rest[: len(rest) - len(end)]) for rest in rests)
        if not "".join(start).strip() or not user or not assistant:
            return None
        pattern = self.header_pattern("".join(start), "".join(end), _flat(turn_ends))
        return pattern, {"user": user, "assistant": assistant}

    def name(self, items: Items) -> str:
        """The text before the first control token: what is behind it, such as a channel, is not the role."""
        return "".join(items[: next((index for index, item in enumerate(items) if item in self.controls), None)])

    def header_pattern(self, start: str, end: str, turn_ends: Sequence[str]) -> re.Pattern[str]:
        stops = "|".join(map(re.escape, [*self.controls, *([end] if end else [])]))
        cuts = "|".join(map(re.escape, [start, *turn_ends]))
        role = rf"(?P<role>(?:(?!{stops}).){{1,{_LONGEST_ROLE}}})(?={stops}|\Z)"
        rest = rf"(?:(?:(?!{cuts}).)*?(?P<end>{re.escape(end)}))?" if end else "(?P<end>)"
        return re.compile(rf"(?P<start>{re.escape(start)}){role}{rest}", re.DOTALL)

    def whole_openings(
        self,
        openings: tuple[Items, Items],
        turn_ends: Mapping[str, Sequence[str]],
        system: list[str] | None,
        begin: str,
    ) -> tuple[re.Pattern[str], dict[str, str]]:
        """Openings that have nothing in common: each is a start of turn, and says the role by itself."""
        pairs = zip(("user", "assistant"), map("".join, openings), strict=True)
        # text that says nothing of the role may as well belong to something else, such as a name before it
        tells = openings[0] != openings[1] or set(openings[0]) & set(self.controls)
        names = {role: opening for role, opening in pairs if opening and tells}
        of_system = system[0].removeprefix(begin).lstrip() if system else ""
        if set(self.items(of_system)) & set(self.controls) and not any(name in of_system for name in names.values()):
            names["system"] = of_system
        return self.openings_pattern(names.values(), _flat(turn_ends)), names

    def openings_pattern(self, openings: Collection[str], turn_ends: Sequence[str]) -> re.Pattern[str]:
        """Plain text is an opening only where the turn's content or end is next: a preamble may hold it too."""
        if not openings:
            return _NEVER
        follows = "|".join(map(re.escape, [*(opening.strip() for opening in openings), *turn_ends]))
        literals = [
            re.escape(opening) + ("" if set(self.items(opening)) & set(self.controls) else rf"(?=\s*(?:{follows}|\Z))")
            for opening in sorted(openings, key=len, reverse=True)
        ]
        return re.compile(rf"(?P<start>{'|'.join(literals)})")


def _flat(turn_ends: Mapping[str, Sequence[str]]) -> list[str]:
    return [end for ends in turn_ends.values() for end in ends]


def _common(left: Items, right: Items) -> Items:
    size = next((index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    return left[: min(len(left), len(right)) if size is None else size]


def _common_end(left: Items, right: Items) -> Items:
    return _common(left[::-1], right[::-1])[::-1]


def _stripped(items: Items) -> Items:
    """Without the white space that they begin with."""
    return items[next((index for index, item in enumerate(items) if not item.isspace()), len(items)) :]


def _stripped_end(items: Items) -> Items:
    return _stripped(items[::-1])[::-1]
