"""Texts that tokenizers get wrong, to test a claim about a tokenizer on: an engine's ids, a view's bytes.

They are fixed and the same on every machine. `random_texts` draws more of them; `long_text` is for tests of speed.
"""

import random
from collections.abc import Iterator

_SCRIPTS = """
The quick brown fox's naïve café, Ærøskøbing | Żółć, őű, Đặng Tiếng Việt | Привет, мир! Ёлка | Γειά σου Κόσμε, ὁδός ς σ
東京は日本の首都です。カタカナ、ﾊﾝｶｸ | 汉语「漢語」：中文，文字。 | 대한민국의 수도는 서울입니다. 大韓民國
ภาษาไทยไม่มีช่องว่าง | हिन्दी में क्षत्रिय श्री | தமிழ் மொழி | ភាសាខ្មែរ | བོད་སྐད་ | မြန်မာ | ᠮᠣᠩᠭᠣᠯ
اللُّغَةُ العَرَبِيَّة، ١٢٣٤ | עִבְרִית שָׁלוֹם | አማርኛ ቋንቋ | ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ | ქართული | Հայերեն
𐌰𐌱𐌲 𐌳 | 𓀀𓁐𓂀 | 𠀀𠮷𪚥 | 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 | 𞤀𞤣𞤤 | ﬁ ㎏ ① Ａｂ１ ½ Ⅷ ™ ʰ ﬀ
İstanbul ıIiİ | Straße STRASSE ẞ | ΣΊΣΥΦΟΣ Σίσυφος | ǅ ǆ Ǆ | iPhone XMLHttpRequest aBcDeF SCREAMING_CASE kebab-case
"""
_COMBINING = """
e\u0301 \u00e9 a\u0308\u0323 a\u0323\u0308 \u1ea1\u0308 | \u0301leading | n\u0303o\u0302\u0301 | \u304b\u3099 \u304c
\u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\uae00 | \ud55c\u11a8 | \u0958 \u0915\u093c | \u212b \u00c5 A\u030a
\u2126 \u03a9 | \u037e | \u1e9b\u0323 | \u0344 | \ufb2e | \U0001d15e | \uf900 \u8c48 | \U0002f800 | \u0f71\u0f72\u0f74
"""
_EMOJI = """
🙂 | 👩‍👩‍👧‍👦 👩🏽‍🚀 | 👍🏿👍 | 🇩🇪🇫🇷🇩 | 1️⃣#️⃣ | ❤️❤︎
🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f | 🏳️‍🌈 | 🙂🙂 🙂a🙂 | \u200d🙂\u200d | 🏿 | \ufe0f
"""
_INVISIBLE = """
\ufeffstart | mid\ufeffdle | \u2581 | \u2581\u2581a \u2581b | a\u2581 | Ġ Ċ ĉ Ā | \ufffd | \ufffda\ufffd
\ue000\U000f0000\U0010fffd | \ufdd0\uffff\U0001fffe\U0010ffff | \u200b\u200c\u200d\u2060 | so\u00adft | \x00 | a\x00b
\u202eright\u202c \u2066left\u2069\u200f | a\u2028b\u2029c\u0085d | a\u000bb\u000cc\u001cd | \x00\x00 | \x7f\x80\x9f
"""
_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"

_LITERALS = """
<bos> <eos> <pad> <unk> <s> </s> <mask> <0x41> <0x0A> <0xZZ> <|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|>
<|eot_id|> [INST] [/INST] <start_of_turn> <end_of_turn> <image_soft_token> <unused0> <｜User｜> <｜begin▁of▁sentence｜>
<think> </think> <tool_call> <|channel|> [CLS] [SEP] [UNK] <|im_end <im_end|> <｜User <0x4 <table> </table> <2mass>
[multimodal] ##ing </w> @@ <<s>> <s><s> <|reserved_special_token_0|> {{ '{%' }}
"""

_PROSE = [
    "def add(left: int, right: int) -> int:\n    '''Sum.'''\n\n\tif left:\n        return left+right  # 12_345\r\n",
    "for (int i=0;i<n;++i){\n\t\ta[i] <<= 2; // x->y\n\t}\n\n\n\n}",
    "SELECT * FROM t WHERE a<>'it''s' AND b>=1e-05;--\n",
    "<div class=\"x\">&nbsp;&amp;</div>\n```rust\nfn f<'a>(x:&'a str){}\n```",
    "$\\frac{1}{2}\\sum_{i=0}^{n} x_i^2 \\le \\alpha\\beta$ ∀x∈ℝ: ⌈x⌉≥x ∧ ¬∅ → ∑∏√∞≠≈",
    "https://user:pw@example.org:8080/a/b%20c?q=1&r=%E6%9D%B1#frag mail@example.com C:\\dir\\file.txt /usr/bin",
    "SGVsbG8gV29ybGQhIFRoaXMgaXMgYmFzZTY0Lg==  deadBEEF0123456789abcdef  550e8400-e29b-41d4-a716-446655440000",
    "I'm you're he'll they'd we've it's DON'T I'M 'S 's ''s o'clock ’s rock'n'roll\n'terminator' (\n's 't",
    "...!!??!! --- === *** ___ ,.;:'\"`~ () [] {} <> /\\|@#$%^&*+= “quoted” ‘single’ «g» – — …",
    "3.14159 1,000,000 -273.15°C 10^100 0x1F 1e-9 12:34:56 2024-02-29 ٣٫١٤ १२३ 一二三 ²³¹ ¼",
    " leading", "trailing ", "  two  ", "\n\nlines\n\n", "\tTab\t", " \n \n ", "a \nb\r\nc\rd\n\r\ne",
    "a  b   c    d     e",
]  # fmt: skip


def _runs() -> Iterator[str]:
    for length in (*range(1, 36), 47, 48, 49, 63, 64, 65, 100, 127, 128, 129, 200):
        for space in " \t\n":
            yield space * length
        yield f"a{' ' * length}b" + "\n" * length + f"{' ' * length}c\t{' ' * length}"
        yield (" \n\t \r\n\u00a0" * length)[:length]
        yield "1234567890"[: length % 11] * (1 + length // 11)


def _collection() -> Iterator[str]:
    yield ""
    yield from map(chr, range(0x100))
    for lines in (_SCRIPTS, _COMBINING, _EMOJI, _INVISIBLE):
        yield lines.strip("\n")
        yield from (text.strip(" ") for line in lines.strip("\n").split("\n") for text in line.split("|"))
    yield from _SPACES
    yield from (f"a{space}b {space}{space} c" for space in _SPACES)
    for literal in _LITERALS.split():
        yield from (literal, f"a{literal}b", f" {literal} \n{literal}{literal}")
    yield from _PROSE
    yield from _runs()
    yield "e" + "\u0301\u0323\u0336" * 40 + "nd"
    yield from (letter * 10_000 for letter in ("a", "\u6771", "\u0e01", "=", "e\u0301"))
    yield from (" " * 3_000 + "x", "ab" * 3_000, "Aa1 " * 2_000, "\U0001f642" * 2_000, "\x00" * 2_000)


ADVERSARIAL_TEXTS: tuple[str, ...] = tuple(dict.fromkeys(_collection()))
"""scripts, combining marks, emoji, invisible characters, white space, special tokens' literals, code, long words"""

# the first code points of ASCII and of other blocks that tokenizers have special rules for
_BLOCKS = (0, 0, 0x80, 0x300, 0x400, 0x600, 0x900, 0xE00, 0x1100, 0x1E00, 0x2000, 0x3000, 0x4E00, 0xAC00, 0xFB00)


def random_texts(seed: int, count: int) -> list[str]:
    """Draw texts of 1 to 30 pieces: characters of all of Unicode or of one block, or short texts of the collection."""
    draw = random.Random(seed)
    short = [text for text in ADVERSARIAL_TEXTS if 0 < len(text) <= 12]
    return ["".join(_piece(draw, short) for _ in range(draw.randint(1, 30))) for _ in range(count)]


def _piece(draw: random.Random, short: list[str]) -> str:
    kind = draw.random()
    if kind < 0.4:
        return draw.choice(short)
    if kind < 0.5:
        return draw.choice(" \t\n") * draw.randint(1, 40)
    if kind < 0.6:
        return "".join(chr(_scalar(draw.randrange(0x10F800))) for _ in range(draw.randint(1, 4)))
    block = draw.choice((*_BLOCKS, draw.randrange(0x10F700)))
    return "".join(chr(_scalar(block + draw.randrange(0x100))) for _ in range(draw.randint(1, 8)))


def _scalar(index: int) -> int:
    """Return the index-th code point that is not a surrogate."""
    return index if index < 0xD800 else index + 0x800


def long_text(characters: int = 1_000_000) -> str:
    """Return a text of this number of characters, drawn from the collection."""
    draw = random.Random(0)
    pieces: list[str] = []
    length = 0
    while length < characters:
        pieces.append(draw.choice(ADVERSARIAL_TEXTS)[:400] + draw.choice(("", " ", "\n", " the ")))
        length += len(pieces[-1])
    return "".join(pieces)[:characters]
