"""The compiled loop of `align`: one pass over both sides of a shard, example by example.

Importing numba takes seconds, so the function that runs this module imports it. The compiled code is cached on disk
until this file changes.

`_merge_example` starts at a byte position where both sides have an end. From there `_merge_tokens` writes one chunk of
bytes after the other: the side that lags takes its next token until both are at the same byte again. Nearly all chunks
consist of content only. `_merge_content` writes those and takes nearly all of the time. It stops at tokens without
bytes, which `_write_gap` pairs, and at a chunk with bytes that a side does not cover, which `_merge_uncovered` writes.
The few values that an inner loop needs stay in registers: a single loop for everything took twice as long.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

from storage.schemas import ChunkKind, TokenKind

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Position = np.uintp
"""an unsigned index: a signed one is checked for Python's negative indices at every access"""

# Copied from the enums: the cached functions contain these numbers, and only a change of this file recompiles them.
_CONTENT, _MIXED, _BEGIN_OF_TEXT, _END_OF_TURN, _TRANSITION = 0, 1, 3, 7, 9
_COMPARED, _PAIRED, _UNPAIRED = 0, 1, 2
assert (_CONTENT, _MIXED, _BEGIN_OF_TEXT, _END_OF_TURN, _TRANSITION) == (
    TokenKind.CONTENT,
    TokenKind.MIXED,
    TokenKind.BEGIN_OF_TEXT,
    TokenKind.END_OF_TURN,
    TokenKind.TRANSITION,
)
assert (_COMPARED, _PAIRED, _UNPAIRED) == (ChunkKind.CONTENT, ChunkKind.PAIRED, ChunkKind.UNPAIRED)

_BLOCK = Position(64)
_KINDS = 256  # any kind fits into the key of a role
_MAX_BYTES = np.iinfo(np.int32).max
_0, _1 = Position(0), Position(1)

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile a function into its callers: a call would count every array's references, which takes a third of the time
    on conversations. Without an entry point for Python, compiling takes half as long."""
    options: Any = {"nogil": True, "forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: Function = njit(**options)(function)
    return compiled


class TokenColumns(NamedTuple):
    """The columns of `ShardTokens`: one side's tokens of N examples."""

    offsets: Ints
    byte_lengths: Ints
    kinds: Ints
    turns: Ints
    uncovered_offsets: Ints
    uncovered_at: Ints
    uncovered_bytes: Ints


class TurnColumns(NamedTuple):
    """The columns of `AssistantTurns`: which messages are an assistant's."""

    offsets: Ints
    assistant: Bools


class ChunkColumns(NamedTuple):
    """The columns that the chunks are written to, as long as the largest possible number of chunks."""

    teacher_tokens: Ints
    student_tokens: Ints
    byte_lengths: Ints
    kinds: Ints
    assistant: Bools
    """initially False"""


class _TemplateRuns(NamedTuple):
    """One side's kinds and turns, and buffers for the runs of tokens of one role at a byte position."""

    kinds: Ints
    turns: Ints
    starts: Ints
    ends: Ints
    keys: Ints
    """turn and kind in one number"""
    first_with: Ints
    """[keys] the first run with each key since the last pair; -1 where there is none"""


@njit(cache=True, nogil=True)
def merge_shard(
    teacher: TokenColumns,
    student: TokenColumns,
    turns: TurnColumns,
    dropped: Bools,
    offsets: Ints,
    chunks: ChunkColumns,
) -> int:
    """Write the chunks, and `offsets` [N + 1], where each example's chunks begin.

    Returns the number of chunks, or -1 - k if the sides of example k cover different bytes or hold invalid values.
    Nothing is read or written outside the arrays as long as their lengths agree.
    """
    keys = _KINDS * (1 + _longest(turns.offsets))
    teacher_runs, student_runs = _template_runs(teacher, keys), _template_runs(student, keys)
    chunk = 0
    offsets[0] = 0
    for example in range(len(dropped)):
        if not dropped[example]:
            covered = _covered(teacher, turns, example)
            if not 0 <= covered <= _MAX_BYTES or covered != _covered(student, turns, example):
                return -1 - example
            chunk = _merge_example(example, chunk, teacher, student, teacher_runs, student_runs, chunks)
            if turns.offsets[example] < turns.offsets[example + 1]:
                own = slice(offsets[example], chunk)
                _mark_assistant(example, chunks.teacher_tokens[own], teacher, turns, chunks.assistant[own])
                _mark_assistant(example, chunks.student_tokens[own], student, turns, chunks.assistant[own])
        offsets[example + 1] = chunk
    return chunk


@_compiled
def _longest(offsets: Ints) -> int:
    longest = 0
    for k in range(len(offsets) - 1):
        longest = max(longest, offsets[k + 1] - offsets[k])
    return longest


@_compiled
def _template_runs(side: TokenColumns, keys: int) -> _TemplateRuns:
    most = _longest(side.offsets)
    starts, ends, run_keys = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    return _TemplateRuns(side.kinds, side.turns, starts, ends, run_keys, np.full(keys, -1, np.int64))


@_compiled
def _covered(side: TokenColumns, turns: TurnColumns, example: int) -> int:
    """Return the number of bytes of an example; -1 if a length, turn or uncovered run is out of range."""
    start, end = side.offsets[example], side.offsets[example + 1]
    total, signs = _sum(side.byte_lengths[start:end])
    messages = turns.offsets[example + 1] - turns.offsets[example]
    at = 0
    for run in range(side.uncovered_offsets[example], side.uncovered_offsets[example + 1]):
        if side.uncovered_at[run] < at or side.uncovered_bytes[run] <= 0:
            return -1
        at = side.uncovered_at[run]
        total += side.uncovered_bytes[run]
    # the turns of a plain text are not read: that would take a tenth of the total time
    turns_fit = messages == 0 or _largest(side.turns[start:end]) < messages
    return total if signs >= 0 and at <= end - start and turns_fit else -1


@_compiled
def _sum(lengths: Ints) -> tuple[int, int]:
    """Return the sum, and a number that is negative if any length is."""
    total, signs = np.int64(0), np.int32(0)
    for k in range(len(lengths)):
        total += lengths[k]
        signs |= lengths[k]
    return int(total), int(signs)


@_compiled
def _largest(turns: Ints) -> int:
    largest = np.int16(-1)
    for k in range(len(turns)):
        largest = max(largest, turns[k])
    return int(largest)


@_compiled
def _merge_example(
    example: int,
    chunk: int,
    teacher: TokenColumns,
    student: TokenColumns,
    teacher_runs: _TemplateRuns,
    student_runs: _TemplateRuns,
    chunks: ChunkColumns,
) -> int:
    """Write the example's chunks from index `chunk` on. Returns the number of chunks so far."""
    t, t_end = Position(teacher.offsets[example]), Position(teacher.offsets[example + 1])
    s, s_end = Position(student.offsets[example]), Position(student.offsets[example + 1])
    t_run, t_runs = teacher.uncovered_offsets[example], teacher.uncovered_offsets[example + 1]
    s_run, s_runs = student.uncovered_offsets[example], student.uncovered_offsets[example + 1]
    n = Position(chunk)
    while True:
        t_stop, s_stop = _stop(teacher, example, t_run), _stop(student, example, s_run)
        t, s, n = _merge_tokens(
            teacher.byte_lengths, teacher.kinds, t, t_stop, student.byte_lengths, student.kinds, s, s_stop, n, chunks
        )
        t_start, t = t, _without_bytes(teacher.byte_lengths, t, t_stop)
        s_start, s = s, _without_bytes(student.byte_lengths, s, s_stop)
        if t_start < t or s_start < s:
            n = _write_gap(n, teacher_runs, t_start, t, student_runs, s_start, s, chunks)
        elif t < t_end or s < s_end or t_run < t_runs or s_run < s_runs:
            t, t_run, s, s_run = _merge_uncovered(example, n, teacher, t, t_run, student, s, s_run, chunks)
            n += _1
        else:
            return int(np.int64(n))  # int() of an unsigned number is unsigned to numba


@_compiled
def _stop(side: TokenColumns, example: int, run: int) -> Position:
    """Return the first token after the next uncovered run; without such a run, the end of the example."""
    if run < side.uncovered_offsets[example + 1]:
        return Position(side.offsets[example] + side.uncovered_at[run])
    return Position(side.offsets[example + 1])


@_compiled
def _merge_tokens(
    teacher_lengths: Ints,
    teacher_kinds: Ints,
    t: Position,
    t_stop: Position,
    student_lengths: Ints,
    student_kinds: Ints,
    s: Position,
    s_stop: Position,
    n: Position,
    chunks: ChunkColumns,
) -> tuple[Position, Position, Position]:
    """Write chunks of bytes up to the first that does not begin with bytes on both sides or goes past a stop.

    Returns the tokens at which that chunk begins, and the number of chunks.
    """
    teacher_tokens, student_tokens, byte_lengths, kinds, _ = chunks
    t_end, s_end = t, s
    while True:
        if t >= t_end:
            t_end = _content_end(teacher_lengths, teacher_kinds, t, t_stop)
        if s >= s_end:
            s_end = _content_end(student_lengths, student_kinds, s, s_stop)
        t, s, n = _merge_content(teacher_lengths, t, t_end, student_lengths, s, s_end, n, chunks)
        if t == t_stop or s == s_stop or teacher_lengths[t] == 0 or student_lengths[s] == 0:
            return t, s, n
        # moving this into a function makes everything a fifth slower
        t_next, s_next = t + _1, s + _1
        t_bytes, s_bytes = np.int64(teacher_lengths[t]), np.int64(student_lengths[s])
        foreign = (teacher_kinds[t] != _CONTENT) | (student_kinds[s] != _CONTENT)
        while t_bytes != s_bytes:
            if t_bytes < s_bytes:
                if t_next == t_stop:
                    return t, s, n
                length = np.int64(teacher_lengths[t_next])
                t_bytes += length
                foreign |= (teacher_kinds[t_next] != _CONTENT) | (length == 0)
                t_next += _1
            else:
                if s_next == s_stop:
                    return t, s, n
                length = np.int64(student_lengths[s_next])
                s_bytes += length
                foreign |= (student_kinds[s_next] != _CONTENT) | (length == 0)
                s_next += _1
        teacher_tokens[n], student_tokens[n], byte_lengths[n] = t_next - t, s_next - s, t_bytes
        kinds[n] = _UNPAIRED if foreign else _COMPARED
        t, s, n = t_next, s_next, n + _1


@_compiled
def _content_end(lengths: Ints, kinds: Ints, token: Position, stop: Position) -> Position:
    """Return the first token from `token` on that is not content or has no bytes, or `stop`."""
    while token < stop:
        end = min(token + _BLOCK, stop)
        other = False
        for k in range(token, end):  # without a break, so that the loop is vectorized
            other |= (kinds[k] != _CONTENT) | (lengths[k] == 0)
        if other:
            break
        token = end
    while token < stop and kinds[token] == _CONTENT and lengths[token]:
        token += _1
    return token


@_compiled
def _merge_content(
    teacher_lengths: Ints,
    t: Position,
    t_end: Position,
    student_lengths: Ints,
    s: Position,
    s_end: Position,
    n: Position,
    chunks: ChunkColumns,
) -> tuple[Position, Position, Position]:
    """Write the chunks of content that end before `t_end` and `s_end`.

    Returns the tokens at which the next chunk begins, and the number of chunks. Each step takes a token from the side
    that is behind in bytes, or from both if they are level, and writes the chunk as if it ended there. It does not
    branch on the lengths: which side is behind is unpredictable, and a mispredicted branch takes longer than a step.
    """
    teacher_tokens, student_tokens, byte_lengths, kinds, _ = chunks
    t_start, s_start, first = t, s, n
    ahead, taken = np.int64(0), np.int32(0)  # bytes that the teacher is ahead, and the teacher's bytes in this chunk
    while t < t_end and s < s_end:
        take_t, take_s = ahead <= 0, ahead >= 0
        t_bytes = teacher_lengths[t] & -np.int32(take_t)
        s_bytes = student_lengths[s] & -np.int32(take_s)
        ahead += np.int64(t_bytes) - np.int64(s_bytes)
        taken += t_bytes
        t += Position(take_t)
        s += Position(take_s)
        teacher_tokens[n], student_tokens[n], byte_lengths[n] = t - t_start, s - s_start, taken
        complete = ahead == 0
        n += Position(complete)
        t_start = t if complete else t_start
        s_start = s if complete else s_start
        taken = taken & -np.int32(not complete)
    for k in range(first, n):
        kinds[k] = _COMPARED
    return t_start, s_start, n


@_compiled
def _without_bytes(lengths: Ints, token: Position, stop: Position) -> Position:
    """Return the first token from `token` on that has bytes, or `stop`."""
    while token < stop and lengths[token] == 0:
        token += _1
    return token


@_compiled
def _merge_uncovered(
    example: int,
    n: Position,
    teacher: TokenColumns,
    t: Position,
    t_run: int,
    student: TokenColumns,
    s: Position,
    s_run: int,
    chunks: ChunkColumns,
) -> tuple[Position, int, Position, int]:
    """Write one chunk that holds uncovered bytes. Returns the token and the run of each side that follow it."""
    t_start, s_start = t, s
    t_bytes, t, t_run = _take(teacher, example, t, t_run)
    s_bytes, s, s_run = _take(student, example, s, s_run)
    while t_bytes != s_bytes:
        if t_bytes < s_bytes:
            length, t, t_run = _take(teacher, example, t, t_run)
            t_bytes += length
        else:
            length, s, s_run = _take(student, example, s, s_run)
            s_bytes += length
    chunks.teacher_tokens[n] = t - t_start
    chunks.student_tokens[n] = s - s_start
    chunks.byte_lengths[n] = t_bytes
    chunks.kinds[n] = _UNPAIRED
    return t, t_run, s, s_run


@_compiled
def _take(side: TokenColumns, example: int, token: Position, run: int) -> tuple[int, Position, int]:
    """Return the size of the next token or uncovered run in bytes, and the token and the run that follow it."""
    if run < side.uncovered_offsets[example + 1] and token == _stop(side, example, run):
        return int(side.uncovered_bytes[run]), token, run + 1
    return int(side.byte_lengths[token]), token + _1, run


@_compiled
def _write_gap(
    n: Position,
    teacher: _TemplateRuns,
    t: Position,
    t_end: Position,
    student: _TemplateRuns,
    s: Position,
    s_end: Position,
    chunks: ChunkColumns,
) -> Position:
    """Write the chunks of the tokens without bytes at one byte position. Returns the number of chunks so far."""
    t_runs, s_runs = _find_roles(teacher, t, t_end), _find_roles(student, s, s_end)
    t_run, s_run = _next_pair(teacher, 0, t_runs, student, 0, s_runs)
    while t_run >= 0:
        t_from, t_to = Position(teacher.starts[t_run]), Position(teacher.ends[t_run])
        s_from, s_to = Position(student.starts[s_run]), Position(student.ends[s_run])
        n = _write(n, t_from - t, s_from - s, _UNPAIRED, chunks)
        n = _write(n, t_to - t_from, s_to - s_from, _PAIRED, chunks)
        t, s = t_to, s_to
        t_run, s_run = _next_pair(teacher, t_run + 1, t_runs, student, s_run + 1, s_runs)
    return _write(n, t_end - t, s_end - s, _UNPAIRED, chunks)


@_compiled
def _write(
    n: Position, teacher_tokens: Position, student_tokens: Position, kind: int, chunks: ChunkColumns
) -> Position:
    """Write a chunk without bytes, unless it has no tokens. Returns the number of chunks so far."""
    if teacher_tokens == _0 and student_tokens == _0:
        return n
    chunks.teacher_tokens[n] = teacher_tokens
    chunks.student_tokens[n] = student_tokens
    chunks.byte_lengths[n] = 0
    chunks.kinds[n] = kind
    return n + _1


@_compiled
def _find_roles(side: _TemplateRuns, token: Position, end: Position) -> int:
    """Find the runs of tokens of equal turn and kind, for the kinds that are roles. Returns their number."""
    count, before = 0, -1
    while token < end:
        kind = side.kinds[token]
        key = (np.int64(side.turns[token]) + 1) * _KINDS + kind if kind >= _BEGIN_OF_TEXT else -1
        if key >= len(side.first_with):  # a turn in a text without messages
            key = -1
        if key >= 0 and key != before:
            side.starts[count] = token
            side.keys[count] = key
            count += 1
        token += _1
        if key >= 0:
            side.ends[count - 1] = token
        before = key
    return count


@_compiled
def _next_pair(
    teacher: _TemplateRuns, t_start: int, t_end: int, student: _TemplateRuns, s_start: int, s_end: int
) -> tuple[int, int]:
    """Return the next two runs of the same key, one per side, or (-1, -1).

    The distance of a pair is that of its farther run; the pair of the smallest distance is returned. A tie is broken by
    the nearer run's distance, and then by the smaller key, so the result does not depend on which side is the teacher.
    At most twice as many runs are examined as are skipped.
    """
    t_found, s_found, ahead = -1, -1, 0
    while t_found < 0 and (t_start + ahead < t_end or s_start + ahead < s_end):
        t, s = t_start + ahead, s_start + ahead
        if t < t_end and teacher.first_with[teacher.keys[t]] < 0:
            teacher.first_with[teacher.keys[t]] = t
        if s < s_end and student.first_with[student.keys[s]] < 0:
            student.first_with[student.keys[s]] = s
        s_match = student.first_with[teacher.keys[t]] if t < t_end else -1
        t_match = teacher.first_with[student.keys[s]] if s < s_end else -1
        if s_match >= 0:
            t_found, s_found = t, s_match
        if t_match >= 0 and (
            s_match < 0 or (t_match - t_start, student.keys[s]) < (s_match - s_start, teacher.keys[t])
        ):
            t_found, s_found = t_match, s
        ahead += 1
    _forget(teacher, t_start, min(t_start + ahead, t_end))
    _forget(student, s_start, min(s_start + ahead, s_end))
    return t_found, s_found


@_compiled
def _forget(roles: _TemplateRuns, start: int, end: int) -> None:
    for run in range(start, end):
        roles.first_with[roles.keys[run]] = -1


@_compiled
def _mark_assistant(example: int, tokens: Ints, side: TokenColumns, turns: TurnColumns, marks: Bools) -> None:
    """Mark the chunks [C] of an example whose last token on this side is what an assistant writes: no header."""
    start, end = side.offsets[example], side.offsets[example + 1]
    kinds, token_turns = side.kinds[start:end], side.turns[start:end]
    assistant = turns.assistant[turns.offsets[example] : turns.offsets[example + 1]]
    end_of_chunk = _0
    for k in range(len(tokens)):
        end_of_chunk += Position(tokens[k])
        if tokens[k] > 0 and token_turns[end_of_chunk - _1] >= 0 and assistant[token_turns[end_of_chunk - _1]]:
            kind = kinds[end_of_chunk - _1]
            marks[k] |= (kind == _CONTENT) | (kind == _MIXED) | (kind == _END_OF_TURN) | (kind == _TRANSITION)
