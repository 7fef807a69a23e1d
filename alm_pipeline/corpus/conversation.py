"""Conversations: lists of messages, and the text that both sides share."""

from collections.abc import Sequence
from typing import Any

Messages = list[dict[str, Any]]
"""A conversation of this room's examples; each message has a `content`."""

Conversation = Sequence[dict[str, Any]]
"""Messages as chat templates expect them: `role`, `content`, and any other fields that a template uses."""


def contents(conversation: Conversation) -> list[str]:
    """Return the messages' contents; a null content, as in tool calls, becomes empty."""
    return [message.get("content") or "" for message in conversation]


def joined_contents(conversation: Conversation) -> str:
    """Return the text that both sides share: the messages' contents, concatenated."""
    return "".join(contents(conversation))
