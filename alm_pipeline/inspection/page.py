"""A picture as an HTML page: a single file, without anything that could run or be fetched."""

from html import escape

from alm_pipeline.inspection.picture import ASSISTANT_LEGEND, DARK, LIGHT, Box, Colors, Picture, PicturedChunk

_STYLE = """
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { margin: 1.5rem; background: var(--paper); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; }
h1 { margin: 0 0 .3rem; font-size: 1.25rem; overflow-wrap: anywhere; }
p { margin: .2rem 0; overflow-wrap: anywhere; } header { color: var(--faint); }
.legend, .chunks { display: flex; flex-wrap: wrap; align-items: stretch; column-gap: 3px; }
.legend { margin: .8rem 0 1.2rem; column-gap: 1rem; color: var(--faint); font-size: .85rem; }
.legend .key { display: inline-block; width: 1.6em; height: 1em; margin-right: .4em; vertical-align: -.15em; }
.break { flex-basis: 100%; height: 0; }
.role { flex-basis: 100%; margin: .6rem 0 .3rem; border-bottom: 1px solid var(--faint); color: var(--faint);
  font-size: .85rem; }
.chunk { display: flex; flex-direction: column; max-width: 100%; margin-bottom: .8rem; padding: 3px;
  border-radius: 5px; }
.first { background: var(--first); border: 1px solid var(--first-frame); }
.second { background: var(--second); border: 1px solid var(--second-frame); }
.paired { background: var(--paired); border: 2px solid var(--paired-frame); }
.unpaired { border: 1px dashed var(--unpaired-frame);
  background: repeating-linear-gradient(135deg, var(--unpaired) 0 5px, var(--paper) 5px 8px); }
.seen_by_teacher { background: var(--seen_by_teacher); border: 2px dashed var(--seen_by_teacher-frame); }
.seen_by_student { background: var(--seen_by_student); border: 2px dashed var(--seen_by_student-frame); }
.seen_by_neither { background: var(--seen_by_neither); border: 2px dotted var(--seen_by_neither-frame); }
.tokens { display: flex; flex-wrap: wrap; justify-content: center; gap: 2px; min-height: 1.55rem; }
.token { flex: 1 0 auto; max-width: 100%; padding: 0 .25em;
  border: 1px solid var(--token_frame);
  border-radius: 3px; background: var(--token); text-align: center; font: 13px/1.4rem ui-monospace, monospace; }
.text { padding: 0 .2em; text-align: center; font-weight: 600; min-height: 1.5rem; }
.assistant .text span { border-bottom: 2px solid currentcolor; }
bdi { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(picture: Picture) -> str:
    """Return the HTML of a picture. Texts are escaped, and the page allows no script, no frame and no request."""
    title = escape(picture.title)
    header = "\n".join(f"<p>{escape(line)}</p>" for line in picture.header)
    chunks = "\n".join(map(_chunk, picture.chunks))
    footer = "\n".join(f"<p>{escape(line)}</p>" for line in picture.footer)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
@media print {{ :root {{ {_variables(LIGHT)} }} .chunk {{ break-inside: avoid; }} }}{_STYLE}</style>
<h1>{title}</h1>
<header>
{header}
</header>
{_legend(picture)}
<main class="chunks">
{chunks}
</main>
{footer}
</html>
"""


def _variables(colors: Colors) -> str:
    """Return CSS variables: a dark page is printed in the light colors."""
    plain = [f"--{name}: {value};" for name, value in colors._asdict().items() if name != "chunks"]
    chunks = [f"--{style}: {fill}; --{style}-frame: {frame};" for style, (fill, frame) in colors.chunks.items()]
    return " ".join([*plain, *chunks])


def _legend(picture: Picture) -> str:
    keys = [f'<span><span class="key {style}"></span>{meaning}</span>' for style, meaning in picture.legend.items()]
    if picture.has_assistant:
        keys.append(f'<span class="assistant"><span class="text"><span>text</span></span> {ASSISTANT_LEGEND}</span>')
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
    """Isolate the label, so that right-to-left text does not move its neighbors."""
    return f"<bdi>{escape(box.label)}</bdi>"
