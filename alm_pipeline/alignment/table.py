"""The counts of alignments as rows of a table: which bytes only one side sees, and of which roles."""

from collections.abc import Collection, Mapping, Sequence

from alm_pipeline.alignment.counts import RoleBytes, bytes_by_role
from alm_pipeline.alignment.sections import TEXT
from alm_pipeline.alignment.visibility import Visibility
from storage.printed.shares import percent

_TITLES = {
    Visibility.TEACHER_ONLY: "only the teacher sees",
    Visibility.STUDENT_ONLY: "only the student sees",
    Visibility.UNSEEN: "neither side sees",
    Visibility.UNCOMPARED: "both see, not compared",
}
SEEN_BY_NOT_BOTH = (Visibility.TEACHER_ONLY, Visibility.STUDENT_ONLY, Visibility.UNSEEN)
_MOST_ROLES = 6


def visibility_rows(
    counts: Mapping[str, int], text_bytes: int, kinds: Collection[Visibility] = tuple(_TITLES)
) -> list[tuple[str, str]]:
    """Return a row for each reason why bytes of the texts are not aligned: its title, and the bytes by role.

    Shares are of `text_bytes`. Empty where all bytes are aligned, and for a dataset of an earlier version.
    """
    by_role = bytes_by_role(counts)
    return [(_TITLES[kind], shares_text(by_role[kind], kind, text_bytes)) for kind in kinds if by_role.get(kind)]


def shares_text(roles: Sequence[RoleBytes], kind: Visibility, text_bytes: int) -> str:
    """Return the share of the bytes of one visibility, and of each role: `12.30% of the bytes: system 12.30%`."""
    total = percent(sum(role.bytes for role in roles), text_bytes)
    if [role.role for role in roles] == [TEXT]:
        return f"{total} of the bytes"
    parts = [f"{_name(role, kind)} {percent(role.bytes, text_bytes)}" for role in roles[:_MOST_ROLES]]
    rest = sum(role.bytes for role in roles[_MOST_ROLES:])
    parts += [f"others {percent(rest, text_bytes)}"] if rest else []
    return f"{total} of the bytes: {', '.join(parts)}"


def _name(role: RoleBytes, kind: Visibility) -> str:
    """Return a role's name; `parts of` it where the other side leaves out no message as a whole."""
    return role.role if role.whole_bytes or kind == Visibility.UNCOMPARED else f"parts of {role.role}"
