"""Shared by both pages: the style sheet, the shell around a body, and plain tables. Every string is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, TypeVar

T = TypeVar("T")
SHOWN_ROWS = 200  # of a longer table the newest rows are shown
FOLDED_ROWS = 25  # a longer table is folded away: the page must be readable for a thousand stages

# Okabe-Ito colours, a lighter set of the same hues on dark ground: distinguishable with every common colour vision
STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--page:#fbfbfa;--card:#fff;--band:#00000009;
--rise:213,94,0;--fall:0,158,115;--cost:0,114,178;--hue:42%;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#c0609b;--s4:#b37b00;--s5:#2b9fd9;--s6:#7d5fb0;--s7:#6b6b6b}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a3adb8;--line:#363d44;--page:#14171a;--card:#1c2024;
--band:#ffffff0b;--rise:255,130,60;--fall:50,200,150;--cost:90,180,240;--hue:65%;
--s0:#4ba3e3;--s1:#ff8a4c;--s2:#3ccf9f;--s3:#ea95c9;--s4:#f0b840;--s5:#8ad4ff;--s6:#b39ae6;--s7:#b8b8b8}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:960px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 2px;overflow-wrap:anywhere}
h2{font-size:18px;margin:38px 0 6px}h3{font-size:15px;margin:22px 0 6px}p{margin:6px 0 10px}
a{color:inherit}
.soft{color:var(--soft)}.warn{border-left:4px solid rgb(var(--rise));padding:6px 12px;background:rgba(var(--rise),.1)}
.verdict{font-size:18px;line-height:1.5;margin:14px 0 0;text-wrap:pretty}
nav{display:flex;flex-wrap:wrap;gap:2px 14px;margin:16px 0 0;font-size:13px}nav a{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:20px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:22px;line-height:1.3;font-variant-numeric:tabular-nums}.tile small{display:block}
.tile span{font-size:13px}small{color:var(--soft)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;margin:6px 0 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child>*{border-bottom:0}th:first-child,td:first-child,td.left,th.left{text-align:left}
th{font-weight:600;color:var(--soft);font-size:13px;vertical-align:bottom}
td:first-child,th:first-child{position:sticky;left:0;background:var(--card)}
td.left{white-space:normal;min-width:7em}td.long{min-width:17em}
td small{margin-left:6px;color:inherit;opacity:.75}td.own{font-weight:700}td.own::before{content:"●";font-size:8px;vertical-align:2px;
margin-right:6px}td.bar{width:34%}td.bar i{display:block;height:10px;border-radius:3px;background:rgb(var(--cost))}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}svg.chart{min-width:700px}
svg text{fill:var(--soft)}svg .grid{stroke:var(--line)}svg .band{fill:var(--band)}svg .name{font-weight:600}
svg polyline{stroke-linejoin:round}svg g.line:hover polyline{stroke-width:4}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;padding:8px 12px;font-size:13px}
.legend i{display:inline-block;width:18px;height:3px;margin-right:6px;vertical-align:middle}
.ramp{display:inline-block;width:140px;height:10px;border-radius:3px;vertical-align:middle;margin:0 6px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:10px 12px;font-size:12.5px;margin:6px 0}
details{margin:8px 0}summary{cursor:pointer;color:var(--soft)}code{font-size:12.5px;overflow-wrap:anywhere}
@media(max-width:600px){main{padding:18px 12px 40px}h1{font-size:22px}.verdict{font-size:16px}
.tiles{grid-template-columns:1fr 1fr}th,td{padding:6px 9px}td.long{min-width:13em}}
@media print{.scroll{overflow:visible}details{display:block}}
"""


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page without network access or scripts; `sections` are HTML already, `title` is text."""
    return (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,'
        f'initial-scale=1"><title>{escape(title)}</title><link rel=icon href="data:,"><style>{STYLE}</style></head>'
        "<body><main>" + "\n".join(part for part in sections if part) + "</main></body></html>\n"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,), long: int = -1) -> str:
    """A plain table; every value is escaped. Columns in `left` are left-aligned, `long` holds sentences.

    Of thousands of rows the newest are shown.
    """

    def side(index: int) -> str:
        names = " ".join(name for name, on in (("left", index in left), ("long", index == long)) if on)
        return f' class="{names}"' if names else ""

    rows = list(rows)
    total = len(rows)
    rows, left_out = newest(rows)
    head = "".join(f"<th{side(i)}>{escape(text)}</th>" for i, text in enumerate(headings))
    lines = [
        "<tr>" + "".join(f"<td{side(i)}>{escape(str(value))}</td>" for i, value in enumerate(row)) + "</tr>"
        for row in rows
    ]
    return folded(
        f"<div class=scroll><table>{f'<tr>{head}</tr>' if any(headings) else ''}{''.join(lines)}</table></div>"
        + left_out,
        total,
    )


def newest(rows: list[T]) -> tuple[list[T], str]:
    """The last rows of a table that a page has room for, and a line about the others."""
    if len(rows) <= SHOWN_ROWS:
        return rows, ""
    note = f"{len(rows) - SHOWN_ROWS:,} earlier rows are not shown; ledger.jsonl and matrix.json hold all"
    return rows[-SHOWN_ROWS:], f"<p class=soft><small>{note}</small></p>"


def folded(html: str, rows: int, what: str = "rows") -> str:
    """`html` behind a line to click where it is long."""
    return html if rows <= FOLDED_ROWS else f"<details><summary>{rows} {what}</summary>{html}</details>"


def markdown_safe(text: str) -> str:
    """A text of somebody else in one cell of a Markdown table: no markup, no link and no image comes of it."""
    escaped = re.sub(r"([\\`\[\]|*])", r"\\\1", " ".join(text.split()))
    return escape(escaped, quote=False)
