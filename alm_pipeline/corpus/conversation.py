"""Conversations: lists of messages, and the text that both sides share of one."""

from collections.abc import Sequence
from typing import Any

Conversation = Sequence[dict[str, Any]]
"""Messages as chat templates take them: `role`, `content`, and whatever else a template knows."""


def contents(conversation: Conversation) -> list[str]:
    """The messages' contents; a null one, which calls of tools come with, is empty."""
    return [message.get("content") or "" for message in conversation]


def joined_contents(conversation: Conversation) -> str:
    """The text that both sides share: the messages' contents, one after the other."""
    return "".join(contents(conversation))
