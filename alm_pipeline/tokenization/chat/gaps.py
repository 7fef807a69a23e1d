"""What a template writes between the parts of a conversation that it shows, section by section.

The grammar explains what is between two messages. Between two parts of one message of the assistant, everything that is
no content leads from the one part to the other: it ends the thoughts, opens a call, or goes from a name to its
arguments. That is a transition, if nothing of the conversation is left out in between, or hidden in it.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from alm_pipeline.conversations.sections import REASONING, TOOL_CALLS
from alm_pipeline.tokenization.chat.dialogue import Dialogue
from alm_pipeline.tokenization.chat.grammar import Label
from alm_pipeline.tokenization.chat.tracing import ContentFragment, Trace
from storage.schemas import TokenKind

_EMPTY_BLOCK = re.compile(r"\s*<([\w|｜▁]+)>\s*</\1>\s*")


@dataclass(frozen=True)
class Gaps:
    """The gaps of a rendered text: before each fragment, and after the last."""

    text: str
    dialogue: Dialogue
    trace: Trace
    turn_ends: Collection[str]
    """control tokens"""

    def messages(self, gap: int) -> tuple[int, int]:
        """Return the messages of the fragments before and after a gap: -1 at the start, their number at the end."""
        left, right = self._around(gap)
        sections = self.dialogue.sections
        before = sections[left.section].message if left else -1
        return before, sections[right.section].message if right else len(self.dialogue.roles)

    def labels(self, gap: int, labels: Sequence[Label]) -> Iterator[Label]:
        """Yield the labels of a gap with the section that each belongs to, and with its transitions."""
        if len(self.dialogue.sections) == len(self.dialogue.roles):  # sections are messages, and there are no calls
            yield from labels
            return
        before, after = self.messages(gap)
        left, right = self._around(gap)
        for number, label in enumerate(labels):
            if label.turn < 0:
                yield label
            elif label.kind != TokenKind.TEMPLATE:
                yield label._replace(turn=self._section(label))
            elif left and right and before == after:
                yield self._inner(gap, label, left, right)
            elif left and label.turn == before:
                closed = any(following.kind == TokenKind.END_OF_TURN for following in labels[number + 1 : number + 2])
                yield self._closing(gap, label, left, closed)
            elif right and label.turn == after and number + 1 == len(labels):
                yield from self._opening(gap, label, right)
            else:
                own = self.dialogue.own_sections(label.turn)
                is_closed = any(other[2:] == (TokenKind.END_OF_TURN, label.turn) for other in labels[:number])
                yield label._replace(turn=own[-1] if is_closed else own[0])

    def _section(self, label: Label) -> int:
        own = self.dialogue.own_sections(label.turn)
        return own[-1] if label.kind in (TokenKind.END_OF_TURN, TokenKind.END_OF_TEXT) else own[0]

    def _inner(self, gap: int, label: Label, left: ContentFragment, right: ContentFragment) -> Label:
        is_call = self.dialogue.sections[right.section].role == TOOL_CALLS
        if (is_call or left.section != right.section) and self._leads(gap, label, self._end(left), self._start(right)):
            return label._replace(kind=TokenKind.TRANSITION, turn=right.section)
        return label._replace(turn=left.section)

    def _closing(self, gap: int, label: Label, left: ContentFragment, is_closed: bool) -> Label:
        """Return the label of what follows a message's last part."""
        last = self.dialogue.own_sections(label.turn)[-1]
        is_call = self.dialogue.sections[left.section].role == TOOL_CALLS
        end = self.dialogue.section_starts[last + 1]
        if is_call and is_closed and self._leads(gap, label, self._end(left), end):
            return label._replace(kind=TokenKind.TRANSITION, turn=last)
        return label._replace(turn=last)

    def _opening(self, gap: int, label: Label, right: ContentFragment) -> Iterator[Label]:
        """Yield the labels of what comes before a message's first part, between its header and that part."""
        first = self.dialogue.own_sections(label.turn)[0]
        start = self.dialogue.section_starts[first]
        is_other = self.dialogue.sections[right.section].role in (REASONING, TOOL_CALLS)
        written = self.text[self._offset(gap) + label.start : self._offset(gap) + label.end]
        is_closed = any(end in written for end in self.turn_ends)  # so another turn is in it
        if not is_other or is_closed or not self._leads(gap, label, start, self._start(right)):
            yield label._replace(turn=first)
            return
        # an empty block of thoughts opens nothing
        block = _EMPTY_BLOCK.match(written)
        middle = label.start + (block.end() if block else 0)
        if middle > label.start:
            yield label._replace(end=middle, turn=first)
        if label.end > middle:
            yield label._replace(start=middle, kind=TokenKind.TRANSITION, turn=right.section)

    def _leads(self, gap: int, label: Label, start: int, end: int) -> bool:
        """Return whether a label's text goes from one place of the shared text to another, and hides nothing.

        Of the shared text, only white space may be left out between the two.
        """
        written_from, written_to = self._offset(gap) + label.start, self._offset(gap) + label.end
        written = self.text[written_from:written_to]
        return (
            not self._shared[start:end].strip()
            and not any(written_from <= stray.start < written_to for stray in self.trace.strays)
            and not any(id_ in written for id_ in self.dialogue.ids)
        )

    @cached_property
    def _shared(self) -> str:
        return "".join(self.dialogue.texts)

    def _around(self, gap: int) -> tuple[ContentFragment | None, ContentFragment | None]:
        fragments = self.trace.fragments
        return fragments[gap - 1] if gap else None, fragments[gap] if gap < len(fragments) else None

    def _offset(self, gap: int) -> int:
        return self.trace.fragments[gap - 1].end if gap else 0

    def _start(self, fragment: ContentFragment) -> int:
        return self.dialogue.section_starts[fragment.section] + fragment.content_start

    def _end(self, fragment: ContentFragment) -> int:
        return self._start(fragment) + fragment.end - fragment.start
