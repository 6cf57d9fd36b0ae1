"""Pieces of a self-contained HTML page: escaping, tables, chat messages, and the frame with its style.

Invariants: whatever came from a model, a file or a person passes `escape`, and
is kept in an element of its own direction, so that right-to-left text cannot
turn the rest of the page around; the page asks for nothing over the network,
and its content policy forbids it to; it has no script. Tables that are wider
than a phone scroll by themselves.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

# What a browser would not show, or would obey, is spelled out: control characters, overrides of the writing direction,
# lone surrogates (which UTF-8 cannot hold) and non-characters. Tab and line feed stay.
_INVISIBLE = (
    *(code for code in range(32) if code not in (9, 10)),
    *range(127, 160),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
    *(0xFFFE, 0xFFFF),
)
_SPELLED = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _INVISIBLE}


def escape(value: object) -> str:
    """Text as HTML shows it, in element content and in a double-quoted attribute."""
    return html.escape(str(value).translate(_SPELLED), quote=True)


def cell(value: object) -> str:
    """A value of a table or list: numbers short, yes and no in words, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(entry) for entry in value)
    if isinstance(value, Mapping):
        return escape(json.dumps(value, ensure_ascii=False, default=str))
    return escape(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """A table whose first column names its rows. Cells are escaped, unless they are `Raw`."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for first, *others in rows:
        cells = "".join(f'<td dir="auto">{_content(value)}</td>' for value in others)
        body += f'<tr><th scope="row" dir="auto">{_content(first)}</th>{cells}</tr>'
    note = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption or columns[0] or "table")}">'
        f"<table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class Raw(str):
    """Markup that is already safe."""


def _content(value: object) -> str:
    return value if isinstance(value, Raw) else cell(value)


def share_bar(share: float) -> Raw:
    """A bar of `share` (0 to 1) of a table cell's width."""
    return Raw(f'<span class="share"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></span>')


def settings(values: Mapping[str, Any]) -> str:
    """Nested settings as one two-column table with dotted names."""
    return table(["name", "value"], list(_flatten(values, "")))


def _flatten(values: Mapping[str, Any], prefix: str) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def text_block(text: str) -> str:
    """Text as it was written, line breaks kept, long words broken."""
    return f'<pre dir="auto">{escape(text)}</pre>' if text else '<p class="muted">(empty)</p>'


def dialogue(messages: Sequence[Mapping[str, Any]]) -> str:
    """Chat messages in order, tool calls and their results marked as such."""
    return f'<ol class="dialogue">{"".join(_message(message) for message in messages)}</ol>'


def _message(message: Mapping[str, Any]) -> str:
    role = str(message.get("role", "unknown"))
    style = role if role in ("system", "user", "assistant", "tool") else "unknown"
    name = message.get("name") or message.get("tool_call_id")
    label = f"{role}: {name}" if role == "tool" and name else role
    content = message.get("content")
    body = "" if content in (None, "") else text_block(_as_text(content))
    for call in message.get("tool_calls") or ():
        body += _call(call)
    return f'<li class="{style}"><b>{escape(label)}</b>{body or text_block("")}</li>'


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return f'<div class="call"><span>malformed call</span>{text_block(_as_text(call))}</div>'
    arguments = _as_text(function.get("arguments", ""))
    return f'<div class="call"><span>calls {escape(function.get("name", "?"))}</span>{text_block(arguments)}</div>'


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page; a section is (anchor, heading, content), and those without content are left out."""
    shown = [entry for entry in sections if entry[2]]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in shown)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-heading">'
        f'<h2 id="{anchor}-heading"><a href="#{anchor}">{escape(heading)}</a></h2>{content}</section>'
        for anchor, heading, content in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><header>{header}</header><nav>{links}</nav><main>{body}</main><footer>{footer}</footer></body></html>\n"
    )


# A page's colours and its charts' style are also a picture's, which is a file of its own.
PALETTE = """
:root{--bg:#fbfbfa;--card:#fff;--ink:#1c2024;--muted:#5c646d;--rule:#dfe2e6;--soft:#f1f3f5;--link:#0b5cad;
--good:#176b3a;--good-bg:#e3f3e8;--bad:#b3261e;--bad-bg:#fdeae8;
--c0:#0b62b8;--c1:#c2500a;--c2:#0d7a55;--c3:#8b3fb0;--c4:#a8801a;--c5:#c0306f}
@media(prefers-color-scheme:dark){:root{--bg:#121417;--card:#1a1d21;--ink:#e6e8ea;--muted:#a0a8b1;--rule:#31363c;
--soft:#23272c;--link:#7db7f5;--good:#7fd6a0;--good-bg:#16321f;--bad:#ff9a90;--bad-bg:#3d1a18;
--c0:#63a9f2;--c1:#f0925a;--c2:#4fc596;--c3:#c991ea;--c4:#dab64f;--c5:#f283b0}}
"""
CHART_STYLE = """
svg text{font:11.5px system-ui,sans-serif;fill:var(--muted);font-variant-numeric:tabular-nums}
svg .axis{font-size:11.5px;fill:var(--ink)}svg .value{fill:var(--ink);font-size:11px}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.ref{stroke:var(--bad);stroke-dasharray:6 4;stroke-width:1.3}
.line{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}.faint{opacity:.32;stroke-width:1}
.dot{stroke-width:5.5}.error{stroke:var(--ink);stroke-width:1.3;fill:none}.heat{fill:var(--c0)}
.dead{fill:var(--bad-bg);stroke:var(--bad);stroke-width:1}
""" + "".join(f".k{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}.b{i}{{background:var(--c{i})}}" for i in range(6))
_STYLE = (
    f"{PALETTE}{CHART_STYLE}"
    + """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1120px;padding:1.5rem 1.25rem 3rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.25rem;margin:0 0 .75rem;padding-top:1.75rem}
h3{font-size:1rem;margin:1.25rem 0 .5rem}
h2 a{color:inherit;text-decoration:none}h2 a:hover{text-decoration:underline}
a{color:var(--link)}p{margin:.4rem 0 .8rem;max-width:46rem}
.muted,caption,figcaption span,footer{color:var(--muted)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
header code{display:block;margin:.5rem 0;padding:.45rem .7rem;background:var(--soft);border-radius:6px}
nav{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:.1rem 1rem;white-space:nowrap;
margin:1rem -1.25rem 0;padding:.55rem 1.25rem;background:var(--bg);border-bottom:1px solid var(--rule);font-size:.9rem}
nav a{text-decoration:none}section{scroll-margin-top:3rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,10.5rem),1fr));gap:.75rem;margin:0 0 1rem}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.7rem .9rem}
.card b{display:block;font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums}
.card span{display:block;color:var(--muted);font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:.9rem;margin:0 0 1rem}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.7rem .7rem .4rem;
display:flex;flex-direction:column}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;font-size:.9rem;margin-bottom:.3rem}
figure svg{margin-top:auto}
.key{margin-right:.8rem;white-space:nowrap}.key:last-child{margin-right:0}
.key i{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:.35em}
svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto;margin:0 0 1rem;background:var(--card);border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.5rem .75rem;caption-side:bottom;font-size:.85rem}
th,td{text-align:left;padding:.35rem .75rem;border-bottom:1px solid var(--rule);vertical-align:top;min-width:6rem}
thead th{color:var(--muted);font-weight:600;white-space:nowrap}tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
.verdict{display:inline-block;padding:0 .5em;border-radius:99px;font-weight:600;white-space:nowrap}
.met{color:var(--good);background:var(--good-bg)}.missed{color:var(--bad);background:var(--bad-bg)}
.unknown-verdict{color:var(--muted);background:var(--soft)}
.share{display:block;min-width:6rem;height:.7em;margin-top:.4em;background:var(--soft);border-radius:3px}
.share i{display:block;height:100%;background:var(--c0);border-radius:3px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0;line-height:1.45}
.sample{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.6rem .9rem;margin:0 0 .75rem}
.sample>span{color:var(--muted);font-size:.85rem}.prompt pre{color:var(--muted)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.pair>div{min-width:0}.dialogue{list-style:none;margin:0 0 1rem;padding:0}
.dialogue li{background:var(--card);border:1px solid var(--rule);border-left:4px solid var(--rule);border-radius:6px;
padding:.4rem .75rem;margin-bottom:.5rem}
.dialogue li>b{font-size:.8rem;color:var(--muted);font-weight:600}
.dialogue .user{border-left-color:var(--c0)}.dialogue .assistant{border-left-color:var(--c2)}
.dialogue .tool{border-left-color:var(--c1)}
.call{background:var(--soft);border-radius:5px;padding:.3rem .6rem;margin:.3rem 0}
.call span{font-size:.85rem;font-weight:600}
details{margin-bottom:1rem}summary{cursor:pointer;color:var(--link);padding:.25rem 0}
footer{margin-top:2.5rem;padding-top:1rem;border-top:1px solid var(--rule);font-size:.85rem}
@media(max-width:480px){body{font-size:15px;padding:1rem .8rem 2rem}nav{margin:1rem -.8rem 0;padding:.55rem .8rem;
flex-wrap:nowrap;overflow-x:auto}
svg text,svg .axis{font-size:14px}svg .value{font-size:12px}th,td{padding:.35rem .55rem}
figure{padding:.6rem .35rem .3rem}figcaption{padding:0 .3rem}}
@media print{nav{display:none}body{max-width:none}figure,.sample,.dialogue li{break-inside:avoid}}
"""
)
