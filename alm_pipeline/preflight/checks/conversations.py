"""Checks of conversations by both sides' tokens of the first ones: who shows what of them, and what is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.alignment.counts import RoleBytes, bytes_by_role, visibility_counts
from alm_pipeline.alignment.sections import Sections, learned_sections
from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.alignment.shards import shard_tokens
from alm_pipeline.alignment.table import shares_text
from alm_pipeline.alignment.visibility import ShardVisibility, Visibility
from alm_pipeline.config import LEARNED_PARTS
from alm_pipeline.conversations.sections import ASSISTANT, first_section
from alm_pipeline.corpus.examples import Example
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.preflight.context import Context
from alm_pipeline.tokenization.completions import with_learned_turns
from alm_pipeline.tokenization.encoder import ByteEncoder
from storage.errors import UserError
from storage.printed.inert import one_line

_MOST = 128
"""conversations that are encoded, spread over those of the sample"""
_SIDES = {
    Visibility.TEACHER_ONLY: ("teacher", "student", "student.template"),
    Visibility.STUDENT_ONLY: ("student", "teacher", "teacher_template"),
}
"""who sees a byte, who does not, and the setting that shows it to that side"""


@dataclass(frozen=True)
class _Encoded:
    """Conversations that both sides can encode."""

    chats: Sequence[Example]
    is_all: bool
    """whether the corpus has no others"""
    teacher: pa.Table
    student: pa.Table

    @property
    def which(self) -> str:
        return f"in {'all' if self.is_all else 'the first'} {len(self.chats):,} conversations"

    @property
    def message_roles(self) -> set[str]:
        return {str(message["role"]) for chat in self.chats for message in chat.messages or []}

    @property
    def has_completions(self) -> bool:
        return any(chat.completion_at is not None for chat in self.chats)

    @cached_property
    def visibility(self) -> ShardVisibility:
        sides = shard_tokens(self.teacher), shard_tokens(self.student)
        return ShardVisibility.of(*sides, Sections.of(self.teacher), None)


def _encoded(context: Context) -> _Encoded | None:
    """Encode the first conversations with both sides' tokenizers; None if there are none that both can encode."""
    key = "_encoded_conversations"
    if key not in vars(context):
        vars(context)[key] = _encode(context)
    found: _Encoded | None = vars(context)[key]
    return found


def _encode(context: Context) -> _Encoded | None:
    chats = [example for example in context.sample.examples if example.messages is not None]
    chosen = [chats[k * len(chats) // _MOST] for k in range(_MOST)] if len(chats) > _MOST else chats
    if not chosen:
        return None
    student = context.student_tokenizer or context.templated_source
    try:
        tables = [_table(tokenizer, chosen) for tokenizer in (context.teacher_tokenizer, student)]
    except UserError:  # the template is missing or not valid, which another check reports
        return None
    kept = np.flatnonzero(~np.logical_or(*(table["dropped"].is_valid().to_numpy() for table in tables)))
    is_all = context.sample.is_whole and len(kept) == len(context.sample.examples)
    teacher, student_table = (table.take(pa.array(kept)) for table in tables)
    return _Encoded([chosen[k] for k in kept], is_all, teacher, student_table) if len(kept) else None


def _table(tokenizer: LoadedTokenizer, chats: Sequence[Example]) -> pa.Table:
    conversations = [chat.messages or [] for chat in chats]
    batch = ByteEncoder(tokenizer).encode_conversations(conversations, [chat.arguments for chat in chats])
    if any(chat.completion_at is not None for chat in chats):
        rows = zip(conversations, chats, strict=True)
        batch = with_learned_turns(batch, [first_section(messages, chat.completion_at or 0) for messages, chat in rows])
    return pa.table(batch.columns())


def sides_show_the_same(context: Context) -> None:
    """Each side's chat template shows messages, and those that the other side's shows."""
    encoded = _encoded(context)
    if encoded is None or _shows_nothing(context, encoded):
        return
    counts = visibility_counts(encoded.visibility)
    total = sum(counts[f"{kind.name.lower()}_bytes"] for kind in Visibility)
    refuses = context.config.texts.one_sided == "refuse"
    by_role = bytes_by_role(counts)
    for kind, (seeing, blind, setting) in _SIDES.items():
        # edges that a template trims are not worth a warning
        roles = [role for role in by_role.get(kind, []) if role.whole_sections or refuses]
        if not roles:
            continue
        context.add(
            "corpus.one_sided",
            f"only the {seeing} sees {shares_text(roles, kind, total)}{_messages(roles)}, {encoded.which}",
            f"give the {blind} a chat template that shows them ({setting}), or set what becomes of such conversations",
            severity="error" if refuses and context.sample.is_whole else "warning",
        )


def _messages(roles: Sequence[RoleBytes]) -> str:
    """Return how many sections the other side leaves out as a whole."""
    left_out = ", ".join(f"{role.whole_sections:,} of {one_line(role.role)}" for role in roles if role.whole_sections)
    return f" (left out as a whole: {left_out})" if left_out else ""


def _shows_nothing(context: Context, encoded: _Encoded) -> bool:
    """Add a finding for each side whose template shows no message at all, and return whether there is one."""
    roles = ", ".join(sorted(map(one_line, encoded.message_roles)))
    fields = context.template_fields
    sides = {"teacher": (fields[0], encoded.teacher), "student": (fields[1], encoded.student)}
    blind = {
        side: field
        for side, (field, table) in sides.items()
        if not pc.sum(table["byte_lengths"].combine_chunks().flatten()).as_py()
    }
    for side, field in blind.items():
        context.add(
            field,
            f"the {side}'s chat template shows no message {encoded.which} (of the roles {roles})",
            "give it a template that shows them (teacher_template, or student.template), or rename the roles",
            severity="error" if encoded.is_all else "warning",
        )
    return bool(blind)


def something_is_learned(context: Context) -> None:
    """Where only the assistant's turns are learned, the chosen parts of them are there."""
    objective, settings = context.config.objective, AlignmentSettings.of(context.config)
    encoded = _encoded(context)
    if encoded is None:
        return
    is_marked = bool(context.corpus.marks)
    if not (objective.assistant_only or encoded.has_completions or is_marked):
        _has_no_effect(context, settings)
        return
    sections, shown = Sections.of(encoded.teacher), encoded.visibility.bytes[:, Visibility.ALIGNED] > 0
    is_learned = learned_sections(sections, settings) & (sections.bytes > 0)
    has_answers = ASSISTANT in encoded.message_roles  # another check reports that there are none
    if (is_learned & shown).any() or not has_answers:
        return
    roles = ", ".join(sorted(map(one_line, sections.names)))
    problem = "not both sides show it" if is_learned.any() else f"they have {roles}"
    field = "objective.learn" if settings.learn != LEARNED_PARTS else "objective.learned_turns"
    context.add(
        field if settings != AlignmentSettings(settings.one_sided) else _learned_field(is_marked=is_marked),
        f"nothing is learned {encoded.which} (learn: {', '.join(settings.learn)}; learned_turns: "
        f"{settings.learned_turns}; {problem})",
        "choose other parts or turns, or templates and a corpus that have them",
        severity="error" if encoded.is_all and not is_learned.any() else "warning",
    )


def _learned_field(*, is_marked: bool) -> str:
    return "corpus.marks" if is_marked else "objective.assistant_only"


def _has_no_effect(context: Context, settings: AlignmentSettings) -> None:
    defaults = AlignmentSettings()
    for name in ("learn", "learned_turns"):
        if getattr(settings, name) != getattr(defaults, name):
            context.add(
                f"objective.{name}",
                "it chooses among the assistant's turns, and objective.assistant_only is false, so all is learned",
                "set objective.assistant_only to true",
                severity="warning",
            )
