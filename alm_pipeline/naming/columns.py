"""What the columns of every dataset hold, for the documentation and for `alm head`; none of this is in the files."""

from dataclasses import dataclass

from storage.schemas import Kind


@dataclass(frozen=True)
class ColumnDescription:
    """What a column holds, for the documentation; none of this is written to the files."""

    meaning: str
    shape: str = "one per row"
    """"one per row", or the length of each row's list in brackets"""
    unit: str = ""
    """empty for what has none: texts, ids, categories"""


_DEMONSTRATION_ID = ColumnDescription("The demonstration's id: the same in every dataset made from it.")
_ID_COLUMN = ColumnDescription("The example's id: the same in every dataset made from these examples.")

_WEIGHT = ColumnDescription(
    "The weight λ of the tuned child in the model: 0 is the base, 1 the child; null for a model that was not merged "
    "from two others."
)

COLUMN_DESCRIPTIONS: dict[Kind, dict[str, ColumnDescription]] = {
    Kind.SIGNATURES: {
        "id": ColumnDescription("The document's id."),
        "text_hash": ColumnDescription("A hash of the text, in NFC and without white space at both ends."),
        "bands": ColumnDescription(
            "The hash of each band of MinHashes: documents that share one may be nearly the same.",
            "[bands], or empty for a text without words",
        ),
        "question": ColumnDescription("The id of a question of an evaluation set that it contains; null for none."),
    },
    Kind.DECISIONS: {
        "id": ColumnDescription("The document's id."),
        "reason": ColumnDescription(
            "Why it is left out: `exact_duplicate`, `near_duplicate` or `contaminated`; null if it is kept."
        ),
        "repeats": ColumnDescription(
            "The id of the earlier document that it repeats, in a mixture after its source's name, or of the question "
            "that it contains; null if it is kept."
        ),
    },
    Kind.EXAMPLES: {
        "id": ColumnDescription(
            "The document's id, followed by `#` and the piece's number if the document was cut into several examples."
        ),
        "split": ColumnDescription("`train` or `held_out`. All pieces of a document have the same split."),
        "text": ColumnDescription(
            "The text. For a conversation: what both sides share, message by message: what an assistant thinks, the "
            "content, and the names, keys and values of its calls of tools."
        ),
        "messages": ColumnDescription(
            "The conversation as a JSON list of messages with `role` and `content`; null for a plain text."
        ),
        "completion_at": ColumnDescription(
            "Where the completion begins: a byte of `text`, or the index of a message of a conversation. All before it "
            "is context that is not learned. Only of prompts with completions."
        ),
        "template_arguments": ColumnDescription(
            "What the chat templates get beside the conversation, as a JSON mapping: `tools`, and any other arguments "
            "of the row; null if there are none. Only of corpora whose rows have some."
        ),
        "finish_reason": ColumnDescription(
            "Why a text that a model wrote ends: `stop`, the model ended it, or `length`, it had as many tokens as "
            "were allowed. Only of rollouts."
        ),
        "written_ids": ColumnDescription(
            "The writer's own token ids of the whole example: those of the prompt, and those that it wrote, with the "
            "token that ends the text if it wrote one. Only of rollouts by a model in this process.",
            "[tokens]",
        ),
    },
    Kind.TOKENS: {
        "id": _ID_COLUMN,
        "token_ids": ColumnDescription(
            "The token ids of the example, special and template tokens included.", "[tokens]"
        ),
        "byte_lengths": ColumnDescription(
            "The number of bytes of `text` that each token covers; together with `uncovered_bytes` they add up to the "
            "length of `text`.",
            "[tokens]",
            "bytes (UTF-8)",
        ),
        "kinds": ColumnDescription("The kind of each token: a `TokenKind`.", "[tokens]"),
        "turns": ColumnDescription(
            "The index of the section of a message that each token belongs to; -1 if none. 0 and 1 in texts of a "
            "prompt with a completion. Empty for a plain text.",
            "[tokens], or empty",
            "sections, from 0",
        ),
        "roles": ColumnDescription(
            "The roles of the conversation's sections: that of the message for its content, such as `user`, and "
            "`reasoning` and `tool_calls` for what else an assistant's message has; `prompt` for what of these is not "
            "learned, and `completion` for an answer that is, where not all are. `prompt` and `completion` of texts of "
            "which only a completion is learned. Empty for a plain text.",
            "[sections], or empty",
        ),
        "turn_bytes": ColumnDescription(
            "The number of bytes of `text` in each of these sections; they add up to the length of `text`. Empty for a "
            "plain text.",
            "[sections], or empty",
            "bytes (UTF-8)",
        ),
        "uncovered_at": ColumnDescription(
            "The places of bytes that no token covers: the index of the token after them, or the number of tokens if "
            "they follow the last one.",
            "[gaps]",
            "tokens, from 0",
        ),
        "uncovered_bytes": ColumnDescription("The number of bytes in each of these gaps.", "[gaps]", "bytes (UTF-8)"),
        "dropped": ColumnDescription("Why the example has no tokens; null if it has tokens."),
    },
    Kind.ALIGNMENTS: {
        "id": _ID_COLUMN,
        "teacher_tokens": ColumnDescription(
            "The number of teacher tokens in each chunk; they add up to the example's teacher tokens.",
            "[chunks]",
            "tokens",
        ),
        "student_tokens": ColumnDescription(
            "The number of student tokens in each chunk; they add up to the example's student tokens.",
            "[chunks]",
            "tokens",
        ),
        "byte_lengths": ColumnDescription(
            "The number of bytes of `text` that each chunk covers.", "[chunks]", "bytes (UTF-8)"
        ),
        "kinds": ColumnDescription("What each chunk covers: a `ChunkKind`.", "[chunks]"),
        "ends": ColumnDescription(
            "What is known of the text at the end of each chunk: a `ChunkEnd`, a sum of 1 (a boundary token follows on "
            "both sides) and 2 (given that one follows, both tokenizations up to here are those of any text that "
            "begins so). 3 is an anchor of `debias: both`.",
            "[chunks]",
        ),
        "assistant": ColumnDescription(
            "Whether the chunk is learned where only the assistant's turns are: it is content of one or of a "
            "completion, or ends one, and of the parts and turns that `objective.learn` and `objective.learned_turns` "
            "choose. Empty for a plain text.",
            "[chunks], or empty",
        ),
    },
    Kind.TEACHER_SCORES: {
        "id": _ID_COLUMN,
        "logprobs": ColumnDescription(
            "The teacher's log-probability of each token given all tokens before it; NaN for a token without a "
            "prediction (a first token).",
            "[teacher tokens]",
            "nats",
        ),
        "boundary_logprobs": ColumnDescription(
            "The log-probability that a boundary token (one that begins with white space, or a special one) comes "
            "after each token.",
            "[teacher tokens]",
            "nats",
        ),
        "top_ids": ColumnDescription(
            "The ids of the k likeliest tokens after each token, likeliest first. Only with `score.top_k: k`.",
            "[teacher tokens × k]",
        ),
        "top_logprobs": ColumnDescription(
            "The log-probabilities of the tokens in `top_ids`. Only with `score.top_k: k`.",
            "[teacher tokens × k]",
            "nats",
        ),
    },
    Kind.QUESTIONS: {
        "id": ColumnDescription("The question's id: the same in every dataset of scores of these questions."),
        "prompt": ColumnDescription("The text before the choices."),
        "choices": ColumnDescription(
            "The texts that may follow the prompt, each with what stands between the prompt and it.", "[choices]"
        ),
        "answer": ColumnDescription("The index of the right choice.", unit="choices, from 0"),
        "cluster": ColumnDescription(
            "What the question belongs to: questions of one cluster are drawn together, and never split."
        ),
    },
    Kind.CHOICE_SCORES: {
        "id": ColumnDescription("The question's id."),
        "weight": _WEIGHT,
        "logprobs": ColumnDescription(
            "The log-probability of each choice after the prompt: the sum over its tokens.",
            "[choices], or empty",
            "nats",
        ),
        "tokens": ColumnDescription("The number of tokens of each choice.", "[choices], or empty", "tokens"),
        "byte_lengths": ColumnDescription(
            "The number of bytes that these tokens cover: the choice's, and spaces at the end of the prompt.",
            "[choices], or empty",
            "bytes (UTF-8)",
        ),
        "dropped": ColumnDescription("Why the question was not scored; null if it was."),
    },
    Kind.PLACES: {
        "id": ColumnDescription("The place's id, made of the text's number and the character."),
        "before": ColumnDescription("The text before the place."),
        "byte": ColumnDescription("The byte that is there: the first of its character."),
        "text": ColumnDescription("The number of the text: places of one text are a cluster.", unit="texts, from 0"),
    },
    Kind.NEXT_BYTES: {
        "id": ColumnDescription("The place's id."),
        "weight": _WEIGHT,
        "logprobs": ColumnDescription(
            "The log-probability of each of the 256 bytes, and of the end of the text.", "[257], or empty", "nats"
        ),
        "dropped": ColumnDescription("Why the place was not read; null if it was."),
    },
    Kind.DEMONSTRATIONS: {
        "id": ColumnDescription("The demonstration's id, made of the file's name and the row number."),
        "prompt": ColumnDescription("The prompt."),
        "positive": ColumnDescription("The answer that activations are moved to."),
        "negative": ColumnDescription("The answer that activations are moved away from."),
        "neutral": ColumnDescription("The model's own answer, if the file has it; otherwise null."),
    },
    Kind.NEUTRAL_ANSWERS: {
        "id": _DEMONSTRATION_ID,
        "answer": ColumnDescription("The model's own greedy answer to the prompt, or the one that the file has."),
        "token_ids": ColumnDescription("The token ids of the prompt with this answer.", "[tokens]"),
    },
    Kind.ACTIVATIONS: {
        "id": _DEMONSTRATION_ID,
        "neutral": ColumnDescription(
            "The activations at the last token of the prompt with the model's own answer: those of each place in order "
            "of the layers, one after the other. Of neutral answers.",
            "[places × width]",
        ),
        "positive": ColumnDescription(
            "The same of the prompt with its positive answer. Of demonstrations.", "[places × width]"
        ),
        "negative": ColumnDescription(
            "The same of the prompt with its negative answer. Of demonstrations.", "[places × width]"
        ),
    },
    Kind.ACTIVATION_SUMS: {
        "id": ColumnDescription("The place: the layer's number and `mlp`, `attention` or `layer`."),
        "rows": ColumnDescription("The number of demonstrations in the shard.", unit="demonstrations"),
        "neutral": ColumnDescription("Σ h over the shard's neutral activations h.", "[width]"),
        "positive": ColumnDescription("Σ h⁺ over its positive activations.", "[width]"),
        "negative": ColumnDescription("Σ h⁻ over its negative activations.", "[width]"),
        "squares": ColumnDescription("Σ h² of each channel of neutral activations.", "[width]"),
        "neutral_positive": ColumnDescription("Σ h h⁺ᵀ, row by row.", "[width × width]"),
        "neutral_negative": ColumnDescription("Σ h h⁻ᵀ, row by row.", "[width × width]"),
    },
}
"""What each column of each kind holds, the optional ones included."""
