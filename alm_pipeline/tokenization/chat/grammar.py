"""The grammar of a chat template's own text: what opens a turn, names its role, ends its header and ends the turn.

It is learned once, from renderings of short conversations of placeholders. A truncated conversation and a longer one
have the same text after a content: this text closes the turn. The rest, up to the next content, opens the next turn.
The openings of user and assistant differ in the role's name. Everything that the grammar doesn't explain remains
`TEMPLATE`: a token left unpaired is safe, a wrong pairing is not.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

from storage.schemas import TokenKind

Probe = Callable[[Sequence[str]], list[str] | None]
"""Renders placeholders in these roles, and returns the text before, between and after them; None if that fails."""

_NEVER = re.compile(r"(?!)")
_CONTROL = re.compile(r"<[|｜].*[|｜]>")
_LONGEST_ROLE = 64


class Label(NamedTuple):
    """A labeled stretch of the template's text. Positions are characters of the text that was labeled."""

    start: int
    end: int
    kind: TokenKind
    turn: int


class Segment(NamedTuple):
    """A stretch of the template's text from a header (or a content's end) to the next header (or content)."""

    owner: int
    """the index of the message; -1 for none"""
    header: re.Match[str] | None
    start: int
    end: int


@dataclass(frozen=True, eq=False)  # compared by identity, since it is part of a cache's key
class Grammar:
    """How a template writes turns. What it doesn't write is empty, or a pattern that matches nothing."""

    begin: str = ""
    """begins every text"""
    header: re.Pattern[str] = _NEVER
    """has the groups start, role and end; if the openings have no common beginning, each is matched whole as start"""
    names: Mapping[str, str] = field(default_factory=dict)
    """for user and assistant: the template's name of each role"""
    turn_ends: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """for user and assistant: the literals that may end a turn of each role"""
    text_end: str = ""
    """follows the end of the last turn"""
    controls: Sequence[str] = ()
    """all of the tokenizer's control tokens, also those that end no turn of text"""

    @cached_property
    def control_ends(self) -> list[str]:
        """The ends of turns that consist of control tokens only."""
        return [end for end in _all_ends(self.turn_ends) if self._is_control(end)]

    def label(self, text: str, before: int, after: int, roles: Sequence[str]) -> list[Label]:
        """Tile the template's text between the contents of the messages `before` and `after` with labels.

        `before` is -1 at the start of the conversation, and `after` is len(roles) at its end. The messages between the
        two show no content.
        """
        shift = max(before, 0)
        labels = _label(self, text, before - shift, after - shift, tuple(roles[shift : after + 1]))
        return [label._replace(turn=label.turn + shift) if label.turn >= 0 else label for label in labels]

    def _label(self, text: str, before: int, after: int, roles: Sequence[str]) -> list[Label]:
        if before == after:
            return _tiled([], 0, len(text), before)
        begin = len(self.begin) if before == -1 and text.startswith(self.begin) else 0
        labels = [Label(0, begin, TokenKind.BEGIN_OF_TEXT, -1)] if begin else []
        for segment in self._segments(text, begin, before, after, roles):
            segment_labels = self._segment(text, segment, after, roles) if segment.owner >= 0 else []
            labels += _tiled(segment_labels, segment.start, segment.end, segment.owner)
        return labels

    def _segments(self, text: str, begin: int, before: int, after: int, roles: Sequence[str]) -> list[Segment]:
        headers = list(self.header.finditer(text, begin))
        owners = [before, *self._owners(headers, before, after, roles)]
        edges = [begin, *(header.start() for header in headers), len(text)]
        return [
            Segment(owner, header, start, end)
            for owner, header, (start, end) in zip(owners, [None, *headers], pairwise(edges), strict=True)
        ]

    def _owners(self, headers: Sequence[re.Match[str]], before: int, after: int, roles: Sequence[str]) -> list[int]:
        """Return each header's message, or -1 for none (a default system prompt, a header for the next answer).

        The last header before a content belongs to that content's message, even if it names another role: a template
        may write a tool's answer under a user's header. The exception is a header that names a message in between
        without content; such a message can only be recognized by its role's name.
        """
        owners = [-1] * len(headers)
        order, messages = range(len(headers)), range(before + 1, min(after + 1, len(roles)))
        if after < len(roles):
            order, messages = order[::-1], messages[::-1]
            if len(headers) < len(messages) and headers and not self._is_named(headers[-1], roles[after]):
                between = [message for message in messages[1:] if self._is_named(headers[-1], roles[message])]
                messages = range(between[0], before, -1) if between else messages
        for index, message in zip(order, messages, strict=False):
            if message != after and not self._is_named(headers[index], roles[message]):
                break
            owners[index] = message
        return owners

    def _is_named(self, header: re.Match[str], role: str) -> bool:
        return _name(header) == self.names.get(role, role)

    def _segment(self, text: str, segment: Segment, after: int, roles: Sequence[str]) -> list[Label]:
        """Return the labels of a segment that belongs to a message, without its `TEMPLATE` text."""
        opening, start = [], segment.start
        if segment.header:
            opening, start = self._header(segment.header, segment.owner, roles), segment.header.end()
        if segment.owner == after:
            return opening
        return opening + self._closings(text, start, segment.end, segment.owner, after, roles)

    def _header(self, header: re.Match[str], owner: int, roles: Sequence[str]) -> list[Label]:
        groups = {"start": TokenKind.START_OF_TURN, "role": TokenKind.ROLE, "end": TokenKind.END_OF_HEADER}
        labels = [Label(*header.span(name), groups[name], owner) for name, part in header.groupdict().items() if part]
        # a role that the grammar has no name for may have any name except the user's or the assistant's
        if self._is_named(header, roles[owner]) or (
            roles[owner] not in self.names and _name(header) not in self.names.values()
        ):
            return labels
        return [label for label in labels if label.kind != TokenKind.ROLE]

    def _closings(self, text: str, start: int, end: int, owner: int, after: int, roles: Sequence[str]) -> list[Label]:
        """Return the ends of the owner's turn, and of the next turn if that has neither content nor header."""
        span = self._turn_end(text, start, end, owner, after, roles)
        if span is None:
            return []
        labels = [Label(*span, TokenKind.END_OF_TURN, owner)]
        following = owner + 1
        if following < min(after, len(roles)) and self.names and roles[following] not in self.names:
            next_span = self._turn_end(text, span[1], end, following, after, roles)
            if next_span:
                labels.append(Label(*next_span, TokenKind.END_OF_TURN, following))
        rest = labels[-1].end
        if after == len(roles) and self.text_end and text[rest:end].strip() == self.text_end:
            rest = text.index(self.text_end, rest)
            labels.append(Label(rest, rest + len(self.text_end), TokenKind.END_OF_TEXT, len(roles) - 1))
        return labels

    def _turn_end(
        self, text: str, start: int, end: int, owner: int, after: int, roles: Sequence[str]
    ) -> tuple[int, int] | None:
        """Return the span of the turn's end: right after the content, or else after what the template adds to it.

        In the second case only white space may follow. If neither is found, the turn may end with a control token in
        the middle, before a tool's result that has no header, if the text has a single one; or, for a call, with
        another control token right before the next header or the end of the text.
        """
        ends = self.turn_ends.get(roles[owner], _all_ends(self.turn_ends))
        if not ends:
            return None
        literals = _any_of(ends)
        near = re.compile(rf"\s*({literals})").match(text, start, end)
        tail = rf"(?:{re.escape(self.text_end)}\s*)?" if self.text_end else ""
        match = near or re.compile(rf"({literals})\s*{tail}\Z").search(text, start, end)
        if match:
            return match.span(1)
        known = list(re.compile(_any_of(_all_ends(self.turn_ends))).finditer(text, start, end))
        if known:
            return known[0].span() if len(known) == 1 and self._is_control(known[0][0]) else None
        is_whole = end < len(text) or after == len(roles)
        other = re.compile(rf"((?:{_any_of(self.controls)})+)\s*\Z").search(text, start, end) if is_whole else None
        return other.span(1) if other else None

    def _is_control(self, text: str) -> bool:
        return re.fullmatch(rf"(?:{_any_of(self.controls)})+", text) is not None


@lru_cache(maxsize=1024)
def _label(grammar: Grammar, text: str, before: int, after: int, roles: tuple[str, ...]) -> list[Label]:
    """Cached, since the template's text is much the same in every conversation."""
    return grammar._label(text, before, after, roles)


def _name(header: re.Match[str]) -> str:
    return header.groupdict().get("role") or header["start"]


def _tiled(labels: Iterable[Label], start: int, end: int, turn: int) -> list[Label]:
    """Return the labels, with `TEMPLATE` labels for the text around them."""
    tiled, at = [], start
    for label in labels:
        tiled += [Label(at, label.start, TokenKind.TEMPLATE, turn), label]
        at = label.end
    tiled.append(Label(at, end, TokenKind.TEMPLATE, turn))
    return [label for label in tiled if label.end > label.start]


def control_tokens(added: Iterable[tuple[str, bool]]) -> list[str]:
    """Return the added tokens that a template may use, given as (content, is special).

    These are the special ones, and those that look like control tokens without being flagged.
    """
    return [content for content, special in added if content and (special or _CONTROL.fullmatch(content))]


Items = tuple[str, ...]


def learn_grammar(probe: Probe, controls: Collection[str], begin_of_text: str | None) -> Grammar:
    """Learn a template's grammar from what it renders for the usual roles; an empty one if it refuses them."""
    turns, user, answered = probe(["user", "assistant"] * 2), probe(["user"]), probe(["user", "assistant"])
    system = probe(["system", "user", "assistant"])
    if turns is None or user is None or answered is None:
        return Grammar()
    texts = [*turns, *user, *answered, *(system or [])]
    used = sorted({control for control in controls if any(control in text for text in texts)}, key=len, reverse=True)
    grammar = _Learner(used).grammar(turns, user[-1], answered[-1], system, begin_of_text)
    return replace(grammar, controls=tuple(controls))


@dataclass(frozen=True)
class _Learner:
    """Works on items, each a control token or a single other character: no comparison splits a control token."""

    controls: Sequence[str]

    def items(self, text: str) -> Items:
        return tuple(re.findall("|".join([*map(re.escape, self.controls), "."]), text, re.DOTALL))

    def grammar(
        self, turns: list[str], user_end: str, answer_end: str, system: list[str] | None, begin_of_text: str | None
    ) -> Grammar:
        first, to_user = self.items(turns[0]), self.items(turns[2])
        # documents after the first question, or an empty block of thoughts before the last answer, are not the header's
        to_answer = min(self.items(turns[1]), self.items(turns[3]), key=len)
        ends = self.unprompted(to_answer, to_user, self.items(user_end), self.items(answer_end))
        closings = self.closings(to_answer, to_user, *ends)
        openings = _stripped(to_user[len(closings[1]) :]), _stripped(to_answer[len(closings[0]) :])
        begin = self.begin(first, openings[0], {*to_answer, *to_user}, begin_of_text)
        if set(self.controls).intersection(*map(set, ((*openings[0], *openings[1]), (*closings[0], *closings[1])))):
            return Grammar(begin)  # a token both opens and closes turns, so the text was split at the wrong place
        turn_ends = {
            role: self.turn_ends(closing, end)
            for role, closing, end in zip(("user", "assistant"), closings, ends, strict=True)
        }
        header, names = self.headers(openings, turn_ends) or self.whole_openings(openings, turn_ends, system, begin)
        return Grammar(begin, header, names, turn_ends, self.end_of_text(ends[1], closings[1]))

    def unprompted(self, to_answer: Items, to_user: Items, user_end: Items, answer_end: Items) -> tuple[Items, Items]:
        """Return the ends of truncated conversations, without an answer's header if the template always writes one."""
        closing = _stripped_end(answer_end)
        if user_end == to_answer and self.opens_answer(to_answer, closing) and self.opens_answer(to_user, closing):
            return answer_end, answer_end
        prompt = _common_end(user_end, answer_end)
        if user_end != to_answer or not "".join(prompt).strip():
            return user_end, answer_end
        if user_end != answer_end:
            return user_end[: -len(prompt)], answer_end[: -len(prompt)]
        # turns of user and assistant end alike; their headers begin alike, with a control token, or are one token each
        shared = _common(to_answer, to_user)
        tokens = [index for index, item in enumerate(shared) if item in self.controls]
        opens = to_answer[len(shared) : len(shared) + 1]
        closing = shared if opens and opens[0] in self.controls else shared[: tokens[-1] if tokens else 0]
        return closing, closing

    def opens_answer(self, between: Items, closing: Items) -> bool:
        """Return whether a header that begins with a control token follows this end of a turn, which is one too."""
        rest = _stripped(between[len(closing) :])
        is_closed = between[: len(closing)] == closing and set(closing) & set(self.controls)
        return bool(is_closed and rest and rest[0] in self.controls and rest[0] not in closing)

    def closings(self, to_answer: Items, to_user: Items, user_end: Items, answer_end: Items) -> tuple[Items, Items]:
        """Return what closes a user's and an assistant's turn, with the white space after it."""
        user, assistant = _common(to_answer, user_end), _common(to_user, answer_end)
        # a special token may end the last turn only
        if not user and to_answer[: len(assistant)] == assistant:
            user = assistant
        if not assistant and to_user[: len(user)] == user:
            assistant = user
        return user, assistant

    def begin(self, first: Items, opening: Items, inner: set[str], begin_of_text: str | None) -> str:
        """Return what begins a text: control tokens alone before the first turn, or the begin-of-text token."""
        rest = first[: len(first) - len(opening)] if opening and first[-len(opening) :] == opening else ()
        if rest and all(item in self.controls for item in rest):
            return "".join(rest)
        return first[0] if first and first[0] == begin_of_text and first[0] not in inner else ""

    def turn_ends(self, closing: Items, last_closing: Items) -> list[str]:
        """Return what ends a turn, and what ends the text's last turn if that differs."""
        usual = self.end_of_turn(closing)
        last = "" if usual and usual in "".join(last_closing) else self.end_of_turn(last_closing)
        return [end for end in (usual, last) if end]

    def end_of_turn(self, closing: Items) -> str:
        """Return the last run of control tokens; if there is none, the text without white space around it."""
        tokens = [index for index, item in enumerate(closing) if item in self.controls]
        if not tokens:
            return "".join(closing).strip()
        start = tokens[-1]
        while start - 1 in tokens:
            start -= 1
        return "".join(closing[start : tokens[-1] + 1])

    def end_of_text(self, answer_end: Items, closing: Items) -> str:
        """Return the control tokens after the last turn's closing."""
        rest = _stripped(answer_end[len(_common(answer_end, closing)) :])
        follows = "".join(closing).strip() and answer_end[: len(_stripped_end(closing))] == _stripped_end(closing)
        text = "".join(rest).strip()
        return text if follows and set(self.items(text)) <= set(self.controls) else ""

    def headers(
        self, openings: tuple[Items, Items], turn_ends: Mapping[str, Sequence[str]]
    ) -> tuple[re.Pattern[str], dict[str, str]] | None:
        """Return the pattern of headers with a common beginning, a name and a common end, and the two names.

        Returns None if the openings are not such headers.
        """
        start = _common(*openings)
        while start and start[-1].isalnum():  # the two names begin alike
            start = start[:-1]
        rests = [opening[len(start) :] for opening in openings]
        end = _common_end(*rests)
        while end and end[0].isalnum():
            end = end[1:]
        user, assistant = (self.name(rest[: len(rest) - len(end)]) for rest in rests)
        if not "".join(start).strip() or not user or not assistant:
            return None
        pattern = self.header_pattern("".join(start), "".join(end), _all_ends(turn_ends))
        return pattern, {"user": user, "assistant": assistant}

    def name(self, items: Items) -> str:
        """Return the text before the first control token. What follows it, such as a channel, is not the role."""
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
        """Return the pattern and the names for openings that have nothing in common: each is a role's start of turn."""
        pairs = zip(("user", "assistant"), map("".join, openings), strict=True)
        # text that does not identify the role may belong to something else, such as a name before it
        identifies = openings[0] != openings[1] or set(openings[0]) & set(self.controls)
        names = {role: opening for role, opening in pairs if opening and identifies}
        system_opening = self.without_preamble(system[0].removeprefix(begin).lstrip()) if system else ""
        has_control = set(self.items(system_opening)) & set(self.controls)
        if has_control and not any(name in system_opening for name in names.values()):
            names["system"] = system_opening
        return self.openings_pattern(names.values(), _all_ends(turn_ends)), names

    def without_preamble(self, opening: str) -> str:
        """Return an opening without the template's own instructions, which are longer than any role's name."""
        items = self.items(opening)
        tokens = next((index for index, item in enumerate(items) if item not in self.controls), len(items))
        return "".join(items[:tokens] if tokens and len(items) - tokens > _LONGEST_ROLE else items)

    def openings_pattern(self, openings: Collection[str], turn_ends: Sequence[str]) -> re.Pattern[str]:
        """Return the pattern of these openings.

        Plain text is an opening only if the turn's content or end comes next, since a preamble may contain it too.
        """
        if not openings:
            return _NEVER
        follows = "|".join(map(re.escape, [*(opening.strip() for opening in openings), *turn_ends]))
        literals = [
            re.escape(opening) + ("" if set(self.items(opening)) & set(self.controls) else rf"(?=\s*(?:{follows}|\Z))")
            for opening in sorted(openings, key=len, reverse=True)
        ]
        return re.compile(rf"(?P<start>{'|'.join(literals)})")


def _any_of(literals: Iterable[str]) -> str:
    """Return the pattern of these literals, which matches nothing if there are none."""
    return "|".join(map(re.escape, sorted(literals, key=len, reverse=True))) or r"(?!)"


def _all_ends(turn_ends: Mapping[str, Sequence[str]]) -> list[str]:
    return [end for ends in turn_ends.values() for end in ends]


def _common(left: Items, right: Items) -> Items:
    size = next((index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    return left[: min(len(left), len(right)) if size is None else size]


def _common_end(left: Items, right: Items) -> Items:
    return _common(left[::-1], right[::-1])[::-1]


def _stripped(items: Items) -> Items:
    """Return the items without leading white space."""
    return items[next((index for index, item in enumerate(items) if not item.isspace()), len(items)) :]


def _stripped_end(items: Items) -> Items:
    return _stripped(items[::-1])[::-1]
