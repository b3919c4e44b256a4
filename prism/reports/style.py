"""How reports look: the page's colours, once for CSS and once for matplotlib, and the style sheet."""

from __future__ import annotations

from typing import Final

LIGHT: Final = {
    "paper": "#ffffff",
    "ink": "#1d2733",
    "quiet": "#5b6875",
    "rule": "#dde3ea",
    "series": ["#0b6b9e", "#c8453b", "#2f8556", "#8457a6", "#b8730a", "#54606c"],
}
DARK: Final = {
    "paper": "#12171d",
    "ink": "#e4e9ee",
    "quiet": "#9ba8b5",
    "rule": "#2b343e",
    "series": ["#5ab8e8", "#f58d80", "#77cf9d", "#c49be3", "#e8b45c", "#a9b4bf"],
}

_LINK, _DARK_LINK = LIGHT["series"][0], DARK["series"][0]
_COLOURS = f"""
:root {{ color-scheme: light dark;
  --paper: {LIGHT["paper"]}; --ink: {LIGHT["ink"]}; --quiet: {LIGHT["quiet"]}; --rule: {LIGHT["rule"]}; --link: {_LINK};
  --band: #f4f6f9; --warn: #fff4dc; --warn-edge: #c98a00; --note: #eaf3fa; --note-edge: #0b6b9e; --best: #0a5c33; }}
@media (prefers-color-scheme: dark) {{ :root {{
  --paper: {DARK["paper"]}; --ink: {DARK["ink"]}; --quiet: {DARK["quiet"]}; --rule: {DARK["rule"]};
  --link: {_DARK_LINK};
  --band: #1a2129; --warn: #322710; --warn-edge: #e0a93a; --note: #14273a; --note-edge: #5ab8e8; --best: #86e0ab; }} }}
"""

STYLE: Final = (
    _COLOURS
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; text-wrap: balance; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
.lead { font-size: 1.12rem; }
.made, .caption, caption, figcaption { color: var(--quiet); font-size: .9rem; }
nav ol { columns: 16rem; padding-left: 1.4rem; margin: 1.25rem 0 0; }
a { color: var(--link); }
aside { border-left: 4px solid var(--note-edge); background: var(--note); padding: .6rem .9rem; margin: 1rem 0;
  max-width: 46rem; border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
aside.warn { border-color: var(--warn-edge); background: var(--warn); }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--rule); border-radius: 8px; }
.scroll::-webkit-scrollbar { height: .5rem; }
.scroll::-webkit-scrollbar-thumb { background: var(--quiet); border-radius: 4px; }
.scroll:focus-visible, .long:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; min-width: 100%; font-size: .92rem; }
caption { text-align: left; padding: .55rem .8rem; font-weight: 600; max-width: calc(100vw - 3rem); }
th, td { padding: .4rem .8rem; text-align: left; vertical-align: top; border-top: 1px solid var(--rule);
  max-width: 34rem; overflow-wrap: break-word; white-space: pre-line; }
thead th { border-top: 0; background: var(--band); color: var(--quiet); font-weight: 600; white-space: normal;
  vertical-align: bottom; }
caption + thead th { border-top: 1px solid var(--rule); }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); min-width: 7rem; max-width: 18rem; }
tbody tr:nth-child(even) > * { background: var(--band); }
.number { text-align: right; font-variant-numeric: tabular-nums lining-nums; }
td.number { white-space: nowrap; }
.best { font-weight: 700; color: var(--best); }
.wide { min-width: 16rem; }
.long { max-height: 13rem; min-width: 20rem; overflow-y: auto; }
pre { margin: 0; padding: .8rem; background: var(--band); font-size: .87rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
figure { margin: 1.5rem 0; }
figure img { width: auto; max-width: 100%; height: auto; display: block; }
figcaption small { display: block; opacity: .85; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: .8rem 0 0; font-size: .9rem; }
dl div { display: flex; gap: .4rem; } dt { color: var(--quiet); } dd { margin: 0; }
@media (max-width: 30rem) { main { padding: 1.25rem .75rem 2.5rem; } h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
  th, td { padding: .35rem .55rem; max-width: 20rem; } tbody th { min-width: 5rem; max-width: 8rem; } }
@media print { .scroll { overflow: visible; border: 0; } .long { max-height: none; } section { break-inside: auto; } }
"""
)
