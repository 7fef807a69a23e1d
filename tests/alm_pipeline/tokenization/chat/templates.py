"""Chat templates like those of well-known models, and tokenizers for them."""

from collections.abc import Sequence
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.chat.template import RenderedConversation
from storage.schemas import TokenKind

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
CHATML_WITH_EOS = CHATML + "{{ eos_token }}"
QWEN3 = r"""
{%- set ns = namespace(search=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set is_response = m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>') %}
    {%- if ns.search and m.role == 'user' and not is_response %}
        {%- set ns.search = false %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role in ['user', 'system'] %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set content, thought = m.content, '' %}
        {%- if '</think>' in m.content %}
            {%- set thought = m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = m.content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {%- if content or not loop.first %}{{- '\n' }}{%- endif %}
            {{- '<tool_call>\n' + call | tojson + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}"""
GEMMA = r"""{{ bos_token }}
{%- set prefix, loop_messages = '', messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set prefix, loop_messages = messages[0]['content'] + '\n\n', messages[1:] %}
{%- endif %}
{%- for m in loop_messages %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Roles must alternate') }}{%- endif %}
    {%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
    {{- '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {{- m['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}"""
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
LLAMA3_ALWAYS_PROMPTING = LLAMA3 + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
LLAMA3_DATED = r"""{{- bos_token }}
{%- set system, loop_messages = '', messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system, loop_messages = messages[0]['content'] | trim, messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' + system + '<|eot_id|>' }}
{%- for m in loop_messages %}
    {{- '<|start_header_id|>' + ('ipython' if m['role'] == 'tool' else m['role']) + '<|end_header_id|>\n\n' }}
    {{- m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}"""
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{% elif m['role'] == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}"
    "{% endif %}{% endfor %}"
)
HARMONY = r"""<|start|>system<|message|>You are ChatGPT.
Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>
{%- for m in messages %}
    {%- if m['role'] == 'system' %}
        {{- '<|start|>developer<|message|># Instructions\n\n' + m['content'] + '<|end|>' }}
    {%- elif m['role'] == 'assistant' %}
        {%- if loop.last %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|return|>' }}
        {%- else %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|end|>' }}
        {%- endif %}
    {%- else %}
        {{- '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}
    {%- endif %}
{%- endfor %}"""
VICUNA = (
    "{{ bos_token }}A chat between a USER: and an ASSISTANT. {% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ASSISTANT: ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
)
PHI3 = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
GLM = "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
ALPACA = (
    "{% for m in messages %}{{ '### ' + ('Response' if m['role'] == 'assistant' else 'Instruction') + ':\n' }}"
    "{{ m['content'] + '\n\n' }}{% endfor %}"
)

TEMPLATES: dict[str, tuple[str, Sequence[str], str | None, str | None]] = {
    # template, special tokens, begin of text, end of text
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>"),
    "default_system": (DEFAULT_SYSTEM, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "chatml_with_eos": (CHATML_WITH_EOS, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], None, "<|endoftext|>"),
    "qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<end_of_turn>"),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "llama3_always_prompting": (
        LLAMA3_ALWAYS_PROMPTING,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "llama3_dated": (
        LLAMA3_DATED,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>"),
    "deepseek": (DEEPSEEK, [], "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "harmony": (
        HARMONY,
        ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"],
        "<|startoftext|>",
        "<|return|>",
    ),
    "vicuna": (VICUNA, ["<s>", "</s>"], "<s>", "</s>"),
    "phi3": (PHI3, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], None, "<|endoftext|>"),
    "glm": (GLM, ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"], None, "<|endoftext|>"),
    "alpaca": (ALPACA, [], None, None),
}
_NOT_FLAGGED = ["<｜User｜>", "<｜Assistant｜>", "<table>", "user", "\n\n"]  # added tokens that are not special


def templated(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one of the templates above."""
    template, special, begin, end = TEMPLATES[name]
    return with_template(template, special, begin, end)


def with_template(
    template: str | None, special: Sequence[str] = (), begin: str | None = None, end: str | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has special tokens but no words."""
    backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in _NOT_FLAGGED])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token=end, chat_template=template
    )
    tokenizer.name_or_path = "some/tokenizer"
    return tokenizer


def spans(rendering: RenderedConversation | None) -> list[tuple[str, int, str]]:
    """Return (TokenKind, turn, text) for each span of a rendering."""
    assert rendering
    text = rendering.text.encode()
    pieces = [text[start:end].decode() for start, end in pairwise([0, *rendering.ends.tolist()])]
    names = [TokenKind(kind).name for kind in rendering.kinds.tolist()]
    return list(zip(names, rendering.turns.tolist(), pieces, strict=True))
