"""Fifteen kinds of conversation as rows of a corpus: what agents and reasoning models write, and what goes wrong there.

Each value (a city, a number, a reason) occurs once in its conversation, so that a test can find it in a rendering.
"""

import json
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place, as “now” or later.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "a town"},
                    "days": {"type": "integer", "description": "how many"},
                    "exact": {"type": "boolean", "description": "to the minute"},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "save_note",
            "description": "Keep a note.",
            "parameters": {
                "type": "object",
                "properties": {
                    "note": {"type": "object", "description": "what to keep", "properties": {}},
                    "labels": {"type": "array", "description": "its labels", "items": {"type": "string"}},
                },
                "required": ["note"],
            },
        },
    },
]


@dataclass(frozen=True)
class Row:
    """One row of a corpus: the values of its columns `messages` and `tools`."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


def call(name: str, arguments: Any, id_: str | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function, **({"id": id_} if id_ else {})}


def result(content: Any, id_: str | None = None, name: str | None = None) -> Message:
    return (
        {"role": "tool", "content": content} | ({"tool_call_id": id_} if id_ else {}) | ({"name": name} if name else {})
    )


NESTED: dict[str, Any] = {
    "note": {
        "title": 'Röstzeit "dunkel"',
        "steps": ["Mahlen", "Brühen\nlangsam", "C:\\Kanne"],
        "grams": 18.25,
        "cups": 4711,
        "hot": True,
        "iced": False,
        "milk": None,
        "extras": [],
        "origin": {"country": "ኢትዮጵያ", "farm": {}},
    },
    "labels": ["☕", "früh"],
}

KINDS: dict[str, tuple[Row, ...]] = {
    "plain": (
        Row([user("How many legs has a spider?"), assistant("Eight.")]),
        Row(
            [
                user("Größe von 東京?\nIn km²,\tbitte. 👩‍👩‍👧"),
                assistant("2 194 km².\n\n```python\nprint('{{ x }} {% y %}')\n```"),
                user("  And   Osaka?\n"),
                assistant("225 km².\n"),
            ]
        ),
    ),
    "system": (
        Row([{"role": "system", "content": "Answer in French.\nBriefly."}, user("Legs of an ant?"), assistant("Six.")]),
        Row(
            [
                {"role": "system", "content": "You are a pirate."},
                user("Hi."),
                assistant("Arr."),
                user("Ship?"),
                assistant("Aye."),
            ]
        ),
        Row(
            [
                user("Legs of a crab?"),
                assistant("Ten."),
                {"role": "system", "content": "Now whisper."},
                user("Eyes?"),
                assistant("two"),
            ]
        ),
    ),
    "developer": (
        Row([{"role": "developer", "content": "Answer in Welsh."}, user("Legs of a cat?"), assistant("Pedair.")]),
        Row(
            [
                {"role": "system", "content": "You are Nia."},
                {"role": "developer", "content": "Never use the letter q."},
                user("Legs of a dog?"),
                assistant("Four."),
            ]
        ),
    ),
    "calls_as_text": (
        Row(
            [
                user("Weather in Bern?"),
                assistant(
                    None,
                    tool_calls=[call("get_weather", '{"place": "Bernex", "days": 37, "exact": true}', "callA0001")],
                ),
                result("Schnee", "callA0001", "get_weather"),
                assistant("It snows."),
            ],
            TOOLS,
        ),
        Row(
            [
                user("Keep this."),
                assistant(
                    "I will keep it.",
                    tool_calls=[call("save_note", json.dumps(NESTED, ensure_ascii=False), "callA0002")],
                ),
            ]
        ),
        Row(
            [
                user("Weather in Thun?"),
                # as OpenAI's API writes it: no spaces, and escapes
                assistant("", tool_calls=[call("get_weather", '{"place":"Z\\u00fcrich-West","days":37}', "callA0003")]),
            ],
            TOOLS,
        ),
    ),
    "calls_as_mapping": (
        Row(
            [
                user("Weather in Chur?"),
                assistant(
                    "",
                    tool_calls=[call("get_weather", {"place": "Churwalden", "days": 53, "exact": False}, "callB0001")],
                ),
                result("Nebel", "callB0001", "get_weather"),
                assistant("It is foggy."),
            ],
            TOOLS,
        ),
        Row([user("Keep that."), assistant("Kept.", tool_calls=[call("save_note", NESTED, "callB0002")])], TOOLS),
        Row([user("Any weather."), assistant("", tool_calls=[call("get_weather", {}, "callB0003")])]),
    ),
    "parallel_calls": (
        Row(
            [
                user("Weather here and there?"),
                assistant(
                    "",
                    tool_calls=[
                        call("get_weather", {"place": "Genf"}, "callC0001"),
                        call("get_weather", {"place": "Lugano", "days": 29}, "callC0002"),
                        call("save_note", {"note": {"of": "Visp"}}, "callC0003"),
                    ],
                ),
                result("Regen", "callC0001", "get_weather"),
                result("Sonne", "callC0002", "get_weather"),
                result("saved", "callC0003", "save_note"),
                assistant("Rain and sun."),
            ],
            TOOLS,
        ),
    ),
    "results": (
        Row(
            [
                user("Weather in Sion?"),
                assistant("Let me look.", tool_calls=[call("get_weather", {"place": "Sitten"}, "callD0001")]),
                result('{"clouds": "klar", "°C": -2.5, "wind": null}', "callD0001", "get_weather"),
                assistant("Clear.", tool_calls=[call("save_note", {"note": {"sky": "Himmel"}}, "callD0002")]),
                result("gespeichert\n\tum 12 Uhr", "callD0002", "save_note"),
                assistant("Noted."),
                user("Thanks."),
                assistant("Bye."),
            ],
            TOOLS,
        ),
        Row(  # neither ids nor names
            [
                user("Weather in Brig?"),
                assistant("", tool_calls=[call("get_weather", {"place": "Naters"})]),
                result("Föhn"),
                assistant("Warm wind."),
            ]
        ),
    ),
    "reasoning": (
        Row([user("Legs of two bees?"), assistant("Twelve.", reasoning_content="A bee has six legs.\nTwice six.")]),
        Row([user("Legs of two flies?"), assistant("Twelve.", reasoning="A fly has six legs, doubled.")]),
        Row([user("Legs of two moths?"), assistant("Twelve.", thinking=" A moth — six — „zweimal“. \n")]),
    ),
    "reasoning_inline": (
        Row([user("Wings of a bee?"), assistant("<think>\nTwo pairs of wings.\n</think>\n\nFour.")]),
        Row(
            [
                user("Wings of a fly?"),
                assistant("<think>One pair.</think>Two."),
                user("Sure?"),
                assistant("<think>\nHalteres don't count.\n</think>\n\nYes."),
            ]
        ),
    ),
    "half_open_think": (
        Row([user("Eyes of a bee?"), assistant("Compound and simple ones.\n</think>\n\nFive.")]),
        Row([user("Eyes of a fly?"), assistant("<think>\nThis thought does not end")]),
    ),
    "reasoning_turns": (
        Row(
            [
                {"role": "system", "content": "Be exact."},
                user("Teeth of a snail?"),
                assistant("Thousands.", reasoning_content="The radula is full."),
                user("And weather in Olten?"),
                assistant(
                    "",
                    reasoning_content="The tool knows this.",
                    tool_calls=[call("get_weather", {"place": "Aarau", "days": 61}, "callE0001")],
                ),
                result("Hagel", "callE0001", "get_weather"),
                assistant("It hails.", reasoning_content="The answer is hail."),
            ],
            TOOLS,
        ),
        Row(
            [
                user("One?"),
                assistant("1", reasoning_content="Uno."),
                user("Two?"),
                assistant("2", reasoning_content="Due."),
            ]
        ),
    ),
    "empty_contents": (
        Row([user("Say nothing."), assistant("")]),
        Row([user(""), assistant("You said nothing."), user("Right."), assistant("")]),
        Row([{"role": "system", "content": ""}, user("Hush."), assistant("Shh.")]),
        Row([user("Think of nothing."), assistant("Done.", reasoning_content="")]),
    ),
    "parts": (
        Row(
            [
                user([{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Uri?"}]),
                assistant([{"type": "text", "text": "Snow, "}, {"type": "text", "text": "as always."}]),
            ]
        ),
        Row([user([{"type": "text", "text": "Only one part."}]), assistant("Right.")]),
    ),
    "unknown_roles": (
        Row([user("Legs of a hen?"), {"role": "critic", "content": "Too easy."}, assistant("Two.")]),
        Row([{"role": "human", "content": "Legs of a cow?"}, {"role": "gpt", "content": "Four of them."}]),
    ),
    "images": (
        Row(
            [
                user(
                    [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": "file:a.png"}},
                    ]
                ),
                assistant("A crab."),
            ]
        ),
    ),
}
REFUSED = {"images": "content_part"}
"""The kinds that no side can have, and the reason that their rows are counted under."""
