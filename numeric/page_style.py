"""Style and script of the HTML page: no library, no font, no address outside the file."""

from typing import Final

from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, GRID, INK, MUTED, PAPER, UNSURE

__all__ = ["FRAGMENT_STYLE", "SCRIPT", "STYLE", "THEMED"]

# Figures are drawn in the colours of the light page; these stand-ins let them follow the page into the dark.
THEMED: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--card)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
}

_THEME: Final = f"""
:root {{ color-scheme: light dark; --ink: {INK}; --muted: {MUTED}; --grid: {GRID}; --page: #f5f6f8; --card: {PAPER};
  --good: {GOOD}; --bad: {BAD}; --unsure: {UNSURE}; --accent: {ACCENTS[0]}; --stripe: #f8f9fb; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e4e7eb; --muted: #9aa4af; --grid: #343b44; --page: #14171b; --card: #1c2026;
  --good: #35b98c; --bad: #f0834a; --unsure: #e0b040; --accent: #5ab0e6; --stripe: #20252c; }} }}
"""

STYLE: Final = (
    _THEME
    + """
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.65rem; margin: 0 0 14px; letter-spacing: -.01em; }
h2 { font-size: 1.12rem; margin: 0 0 12px; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: 18px 20px; margin: 18px 0; }
.verdict { border-left: 5px solid var(--tone); background: var(--card); padding: 13px 18px; border-radius: 6px; font-size: 1.06rem;
  margin: 0; }
.verdict b { color: var(--tone); display: block; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; }
.exact { --tone: var(--good); } .failed { --tone: var(--bad); } .unsure { --tone: var(--unsure); }
dl.settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px 22px; margin: 0; }
dl.settings .wide { grid-column: span 2; }
dt { color: var(--muted); font-size: .78rem; } dd { margin: 0; overflow-wrap: break-word; }
.scroll { overflow: auto; max-height: 640px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--card); text-align: left; color: var(--muted); font-weight: 600; white-space: nowrap;
  box-shadow: inset 0 -1px var(--grid); }
th, td { padding: 5px 12px 5px 0; vertical-align: top; } td { border-bottom: 1px solid var(--grid); }
tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 150px; }
td.word { white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); border-radius: 3px; }
th button::after { content: "\\2195"; opacity: .35; margin-left: 4px; font-size: .85em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; } th[aria-sort=descending] button::after { content: "\\2193";
  opacity: 1; }
a { color: inherit; text-decoration: underline; text-decoration-color: var(--grid); text-underline-offset: 3px; }
a:hover { text-decoration-color: currentColor; }
.tag { color: var(--tone); font-weight: 600; white-space: nowrap; } .tag::before { content: "\\25CF"; margin-right: 5px;
  font-size: .75em; }
.failed .tag::before { content: "\\2716"; } .unsure .tag::before { content: "\\25CB"; }
.muted, .hint { color: var(--muted); } .hint { font-size: .84rem; margin: 8px 0 0; }
.bar { display: inline-block; width: 54px; height: 7px; background: var(--grid); border-radius: 4px; overflow: hidden; margin-left: 8px; }
.bar i { display: block; height: 100%; background: var(--tone); }
.graph { overflow: auto; max-height: 620px; border: 1px solid var(--grid); border-radius: 8px; background: var(--card); color: var(--ink);
  cursor: grab; }
.graph.held { cursor: grabbing; } .graph > svg { display: block; margin: 0 auto; max-width: none; max-height: none; }
.tools { float: right; display: flex; gap: 6px; } .tools button { font: inherit; font-size: .85rem; color: var(--ink);
  background: var(--card);
  border: 1px solid var(--grid); border-radius: 6px; padding: 1px 10px; cursor: pointer; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 18px 22px; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; } figcaption { font-size: .84rem; color: var(--muted); }
details { border-top: 1px solid var(--grid); padding: 8px 0; } details:first-of-type { border-top: 0; }
summary { cursor: pointer; display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; } summary code { font-weight: 600; }
summary::before { content: "\\25B8"; color: var(--muted); } details[open] > summary::before { content: "\\25BE"; }
.body { padding: 8px 0 10px 22px; } .body p { margin: 6px 0; }
.law { overflow-x: auto; padding: 8px 0; } .law span.label { color: var(--muted); font-size: .8rem; display: block; margin-bottom: 3px; }
svg.formula { display: block; fill: currentColor; overflow: visible; flex: none; } pre.latex { margin: 0; white-space: pre-wrap;
  font-size: .84rem; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 20px; }
@media (max-width: 620px) { main { padding: 16px 10px 40px; } section { padding: 14px 12px; } .bar { display: none; } }
@media print { .scroll, .graph { max-height: none; overflow: visible; } .tools { display: none; } section { break-inside: avoid; } }
"""
)

FRAGMENT_STYLE: Final = """
.nf-report table { border-collapse: collapse; font-size: 12px; } .nf-report td, .nf-report th { padding: 2px 10px; text-align: right; }
.nf-report td:first-child, .nf-report th:first-child { text-align: left; } .nf-report .exact { color: #00835f; }
.nf-report .failed { color: #d1500f; font-weight: 600; } .nf-report .unsure { color: #b07d00; }
"""

SCRIPT: Final = """
"use strict";
for (const heading of document.querySelectorAll("th[data-sort]")) {
  heading.querySelector("button").addEventListener("click", () => {
    const table = heading.closest("table"), body = table.tBodies[0], place = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending"
      || (heading.dataset.sort === "number" && !heading.hasAttribute("aria-sort"));
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const number = text => { const v = parseFloat(text); return Number.isNaN(v) ? -Infinity : v; };
    const compare = heading.dataset.sort === "number" ? (a, b) => number(value(a)) - number(value(b))
      : (a, b) => value(a).localeCompare(value(b), undefined, {numeric: true});
    body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b)));
  });
}
function openTarget() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", openTarget); openTarget();
const frame = document.querySelector(".graph"), drawing = frame && frame.querySelector("svg");
if (drawing) {
  const box = drawing.viewBox.baseVal, rect = drawing.getBoundingClientRect();
  const width = box && box.width || rect.width, height = box && box.height || rect.height;
  if (!(box && box.width)) drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  let zoom = 1;
  const set = (value, x = frame.clientWidth / 2, y = frame.clientHeight / 2) => {
    const next = Math.min(8, Math.max(0.05, value)), left = (frame.scrollLeft + x) / zoom, top = (frame.scrollTop + y) / zoom;
    zoom = next;
    drawing.style.width = width * zoom + "px"; drawing.style.height = height * zoom + "px";
    frame.scrollLeft = left * zoom - x; frame.scrollTop = top * zoom - y;
  };
  const fit = () => set(Math.min(1.5, (frame.clientWidth - 4) / width));
  const all = () => set(Math.min((frame.clientWidth - 4) / width, 616 / height));
  for (const [id, act] of [["in", () => set(zoom * 1.3)], ["out", () => set(zoom / 1.3)], ["fit", fit], ["all", all]])
    document.getElementById("zoom-" + id).addEventListener("click", act);
  frame.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const at = frame.getBoundingClientRect();
    set(zoom * Math.exp(-event.deltaY / 400), event.clientX - at.left, event.clientY - at.top);
  }, {passive: false});
  let from = null;
  frame.addEventListener("pointerdown", event => {
    from = [event.clientX + frame.scrollLeft, event.clientY + frame.scrollTop];
    frame.classList.add("held");
  });
  addEventListener("pointermove", event => {
    if (!from) return;
    frame.scrollLeft = from[0] - event.clientX; frame.scrollTop = from[1] - event.clientY;
  });
  addEventListener("pointerup", () => { from = null; frame.classList.remove("held"); });
  // a legible start: the whole width where letters stay readable, else full size to scroll in
  if ((frame.clientWidth - 4) / width < 0.45) set(0.8); else fit();
}
"""
