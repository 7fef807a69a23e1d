"""A picture as a page of HTML: all in one file, and without anything that could run or be fetched."""

from html import escape

from alm_pipeline.inspection.picture import LEGEND, Box, Picture, PicturedChunk

# tints of Okabe and Ito's sky blue, orange and bluish green, which color-blind people tell apart; besides, frames
# differ by kind
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --faint: #666; --box: #fff;
  --first: #cfe8f9; --first-line: #4a9fd4; --second: #fbe2b0; --second-line: #c98a00;
  --paired: #c4ecdf; --paired-line: #00805d; --unpaired: #eee; --unpaired-line: #888; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #ececec; --faint: #a5a5a5; --box: #22262b;
  --first: #17455f; --first-line: #56b4e9; --second: #553d08; --second-line: #e69f00;
  --paired: #0c4a3a; --paired-line: #1fc79a; --unpaired: #2c2f33; --unpaired-line: #999; } }
@media print { :root { --paper: #fff; --ink: #000; --faint: #444; --box: #fff;
  --first: #cfe8f9; --second: #fbe2b0; --paired: #c4ecdf; --unpaired: #eee; } .chunk { break-inside: avoid; } }
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { margin: 1.5rem; background: var(--paper); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; }
h1 { margin: 0 0 .3rem; font-size: 1.25rem; overflow-wrap: anywhere; }
p, dl { margin: .2rem 0; } dl { display: grid; grid-template-columns: max-content 1fr; column-gap: .8rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.legend, .chunks { display: flex; flex-wrap: wrap; align-items: stretch; column-gap: 3px; }
.legend { margin: .8rem 0 1.2rem; column-gap: 1rem; color: var(--faint); font-size: .85rem; }
.legend .key { display: inline-block; width: 1.6em; height: 1em; margin-right: .4em; vertical-align: -.15em; }
.break { flex-basis: 100%; height: 0; }
.role { flex-basis: 100%; margin: .6rem 0 .3rem; border-bottom: 1px solid var(--faint); color: var(--faint);
  font-size: .85rem; }
.chunk { display: flex; flex-direction: column; max-width: 100%; margin-bottom: .8rem; padding: 3px;
  border-radius: 5px; }
.first { background: var(--first); border: 1px solid var(--first-line); }
.second { background: var(--second); border: 1px solid var(--second-line); }
.paired { background: var(--paired); border: 2px solid var(--paired-line); }
.unpaired { border: 1px dashed var(--unpaired-line);
  background: repeating-linear-gradient(135deg, var(--unpaired) 0 5px, var(--paper) 5px 8px); }
.tokens { display: flex; flex-wrap: wrap; justify-content: center; gap: 2px; min-height: 1.55rem; }
.token { flex: 1 0 auto; max-width: 100%; padding: 0 .25em;
  border: 1px solid color-mix(in srgb, var(--ink) 35%, transparent);
  border-radius: 3px; background: var(--box); text-align: center; font: 13px/1.4rem ui-monospace, monospace; }
.text { padding: 0 .2em; text-align: center; font-weight: 600; min-height: 1.5rem; }
.assistant .text span { border-bottom: 2px solid currentcolor; }
bdi { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(picture: Picture) -> str:
    """The HTML of a picture. Texts are escaped, and the page allows no script, no frame and no request."""
    title = escape(f"example {picture.example}")
    chunks = "\n".join(map(_chunk, picture.chunks))
    left = f"<p>{picture.left:,} more chunks are not shown.</p>" if picture.left else ""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
<h1>{title}</h1>
<dl>
<dt>above</dt><dd>teacher’s tokens: {escape(picture.tokenizers["teacher"])}</dd>
<dt>below</dt><dd>student’s tokens: {escape(picture.tokenizers["student"])}</dd>
</dl>
<p>{escape(" · ".join(picture.facts))}</p>
{_legend(picture)}
<main class="chunks">
{chunks}
</main>
{left}
</html>
"""


def _legend(picture: Picture) -> str:
    used = {chunk.style for chunk in picture.chunks}
    keys = [f'<span><span class="key {style}"></span>{what}</span>' for style, what in LEGEND.items() if style in used]
    if any(chunk.assistant for chunk in picture.chunks):
        keys.append('<span class="assistant"><span class="text"><span>text</span></span> the assistant’s</span>')
    return f'<div class="legend">{"".join(keys)}</div>'


def _chunk(chunk: PicturedChunk) -> str:
    role = f'<div class="role">{escape(chunk.role)}</div>' if chunk.role is not None else ""
    style = f"{chunk.style} assistant" if chunk.assistant else chunk.style
    text = f'<div class="text" title="{escape(chunk.text.note)}"><span>{_label(chunk.text)}</span></div>'
    teacher, student = (_tokens(chunk.tokens[side]) for side in ("teacher", "student"))
    end = '<div class="break"></div>' if chunk.ends_line else ""
    return f'{role}<div class="chunk {style}">{teacher}{text}{student}</div>{end}'


def _tokens(boxes: list[Box]) -> str:
    tokens = [f'<span class="token" title="{escape(box.note)}">{_label(box)}</span>' for box in boxes]
    return f'<div class="tokens">{"".join(tokens)}</div>'


def _label(box: Box) -> str:
    """Isolated, so that text from right to left does not move its neighbors."""
    return f"<bdi>{escape(box.label)}</bdi>"
