"""The HTML page of a report: one file that needs nothing else.

1. verdict and settings    2. architecture graph    3. table of families    4. trajectories    5. budget    6. laws    7. notes

A content security policy allows the page its own style and script and nothing more, so that it can neither call out nor run what a
drawing or a name brought along.
"""

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Final

from noetherflow.numeric.figures import summary
from noetherflow.numeric.findings import FamilyRecord, Findings, amount, scientific
from noetherflow.numeric.formulas import formula
from noetherflow.numeric.page_figures import svg_of, trajectory_figures
from noetherflow.numeric.page_style import FRAGMENT_STYLE, SCRIPT, STYLE

__all__ = ["fragment", "page"]

TONES: Final = {"exact": "exact", "failed": "failed", "not checked": "unsure"}
WIDE_SETTING: Final = 20
PROLOGUE: Final = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>", re.DOTALL)
FRAGMENT_ROWS: Final = 30
PLAIN_FROM: Final = 0.01
PLAIN_TO: Final = 1e4
SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def page(findings: Findings) -> str:
    """The whole page.

    Parameters
    ----------
    findings : Findings
        What was found; trajectories are drawn where its folder still holds the run.

    Returns
    -------
    str
        A complete HTML document.
    """
    figures, remarks = trajectory_figures(findings)
    parts = (
        _opening(findings),
        _settings(findings),
        _graph(findings),
        _families(findings),
        _trajectories(figures),
        _budget(findings),
        _laws(findings.by_badness),
        _notes(findings, remarks),
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(findings.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def fragment(findings: Findings) -> str:
    """The verdict and the table of families, for a notebook cell; the worst families first.

    Parameters
    ----------
    findings : Findings
        What was found.

    Returns
    -------
    str
        HTML without script.
    """
    shown = findings.by_badness[:FRAGMENT_ROWS]
    head = "".join(f"<th>{name}</th>" for name in ("family", "kind", "charges", "motion", "residual", "bound", "ratio", "verdict"))
    rows = "".join(
        f"<tr><td>{escape(f.name)}</td><td>{escape(f.kind)}</td><td>{f.charges:,}</td><td>{_power(f.motion)}</td><td>{_power(f.residual)}</td>"
        f'<td>{_power(f.bound)}</td><td>{amount(f.ratio)}</td><td class="{TONES[f.verdict]}">{f.verdict}</td></tr>'
        for f in shown
    )
    hidden = len(findings.families) - len(shown)
    more = f"<p>and {hidden} families with smaller ratios</p>" if hidden else ""
    return (
        f'<div class="nf-report"><style>{FRAGMENT_STYLE}</style><b>{escape(findings.title)}</b>'
        f'<p class="{_tone(findings)}">{escape(findings.sentence())}</p><table><tr>{head}</tr>{rows}</table>{more}</div>'
    )


def _opening(findings: Findings) -> str:
    word = "holds" if findings.holds else "fails" if findings.failed else "not settled"
    return f'<h1>{escape(findings.title)}</h1>\n<p class="verdict {_tone(findings)}"><b>{word}</b>{_prose(findings.sentence())}</p>'


def _tone(findings: Findings) -> str:
    return "failed" if findings.failed else "exact" if findings.holds else "unsure"


def _settings(findings: Findings) -> str:
    items = "".join(
        f'<div class="{"wide" if len(value) > WIDE_SETTING else "narrow"}"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
        for name, value in findings.settings.items()
    )
    return f'<section><h2>Run</h2><dl class="settings">{items}</dl></section>' if items else ""


def _graph(findings: Findings) -> str:
    drawing = PROLOGUE.sub("", findings.graph_svg).strip()
    if not drawing:
        return ""
    tools = "".join(
        f'<button type="button" id="zoom-{name}" title="{title}">{label}</button>'
        for name, title, label in (
            ("out", "smaller", "−"),
            ("in", "larger", "+"),
            ("fit", "fit the width", "width"),
            ("all", "see all of it", "all"),
        )
    )
    hint = "Coloured by axis class. Drag to move; Ctrl and wheel to zoom."
    return (
        f'<section><div class="tools">{tools}</div><h2>Architecture</h2><div class="graph" tabindex="0">{drawing}</div>'
        f'<p class="hint">{hint}</p></section>'
    )


def _families(findings: Findings) -> str:
    if not findings.families:
        return ""
    names = ("family", "kind", "charges", "motion", "residual", "bound", "ratio", "verdict")
    head = "".join(_heading(name, "text" if name in ("family", "kind", "verdict") else "number") for name in names)
    rows = "".join(_family_row(place, family) for place, family in enumerate(findings.by_badness))
    hint = (
        "Largest motion and residual of any charge of the family; the ratio is the largest residual over its rounding bound, and at most 1 "
        "where the law holds."
    )
    return (
        f'<section><h2>Families</h2><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="hint">{hint}</p></section>'
    )


def _heading(name: str, sort: str) -> str:
    return f'<th data-sort="{sort}"{_numeric(sort)} scope="col"><button type="button">{name}</button></th>'


def _numeric(sort: str) -> str:
    return ' class="number"' if sort == "number" else ""


def _family_row(place: int, family: FamilyRecord) -> str:
    share = min(1.0, family.ratio) * 100 if family.ratio >= 0 else 0.0
    bar = f'<span class="bar"><i style="width:{share:.0f}%"></i></span>' if family.verdict != "not checked" else ""
    cells = "".join(_cell(value, _power(value)) for value in (family.motion, family.residual, family.bound))
    return (
        f'<tr class="{TONES[family.verdict]}"><td class="name"><a href="#law-{place}"><code>{escape(family.name)}</code></a></td>'
        f'<td class="word">{escape(family.kind)}</td>{_cell(family.charges, f"{family.charges:,}")}{cells}'
        f'{_cell(family.ratio, _prose(amount(family.ratio)) + bar)}<td class="word"><span class="tag">{family.verdict}</span></td></tr>'
    )


def _cell(value: float, text: str) -> str:
    return f'<td class="number" data-value="{value!r}">{text}</td>'


def _trajectories(figures: Sequence[str]) -> str:
    if not figures:
        return ""
    return f'<section><h2>Measured over predicted</h2><div class="figures">{"".join(figures)}</div></section>'


def _budget(findings: Findings) -> str:
    mechanisms = findings.mechanisms
    if not findings.families:
        return ""
    figure = f"<figure>{svg_of(summary(findings), 'largest residual over its bound, and what moved the charges, per family')}</figure>"
    if not mechanisms:
        return f"<section><h2>Residuals</h2>{figure}</section>"
    head = _heading("family", "text") + _heading("total motion", "number")
    head += "".join(_heading(escape(name.replace("_", " ")), "number") for name in mechanisms)
    rows = "".join(_budget_row(family, mechanisms) for family in findings.families)
    return (
        f"<section><h2>Residuals and budget</h2>{figure}</section>\n<section><h2>Budget</h2>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="hint">Which mechanism moved the charges of each family over the run, summed over its charges; the mechanisms sum to the '
        "total motion.</p></section>"
    )


def _budget_row(family: FamilyRecord, mechanisms: Sequence[str]) -> str:
    parts = [family.motion_parts.get(name, math.nan) for name in mechanisms]
    cells = "".join(_cell(part, "–" if math.isnan(part) else _power(part)) for part in parts)
    total = _cell(family.total_motion, f"<b>{_power(family.total_motion)}</b>")
    return f'<tr><td class="name"><code>{escape(family.name)}</code></td>{total}{cells}</tr>'


def _laws(families: Sequence[FamilyRecord]) -> str:
    laws = "".join(_law(place, family) for place, family in enumerate(families))
    return f"<section><h2>Laws</h2>{laws}</section>" if laws else ""


def _law(place: int, family: FamilyRecord) -> str:
    formulas = "".join(
        f'<div class="law"><span class="label">{label}</span>{formula(latex)}</div>'
        for label, latex in (("charge", family.charge_latex), ("balance law", family.balance_latex))
        if latex.strip()
    )
    where = f"Worst at step {family.worst_step}, charge {family.worst_charge}: {_prose(amount(family.ratio))} times its bound."
    parameters = ", ".join(f"<code>{escape(name)}</code>" for name in family.parameters)
    sources = f'<p class="muted">Sources: {escape(", ".join(family.sources))}</p>' if family.sources else ""
    opened = " open" if family.verdict == "failed" else ""
    return (
        f'<details id="law-{place}" class="{TONES[family.verdict]}"{opened}><summary><code>{escape(family.name)}</code>'
        f'<span class="muted">{escape(family.kind)}, {family.charges:,} charges</span><span class="tag">{family.verdict}</span></summary>'
        f'<div class="body"><p>{_prose(family.reason)} {where if family.verdict != "not checked" else ""}</p>{formulas}'
        f'<p class="muted">Moves {parameters or "no parameter"}</p>{sources}</div></details>'
    )


def _notes(findings: Findings, remarks: Sequence[str]) -> str:
    notes = [*(_prose(note) for note in (*findings.notes, *remarks))]
    if findings.opaque:
        notes.insert(0, "Nothing was let through: " + ", ".join(f"<code>{escape(name)}</code>" for name in findings.opaque))
    return f"<section><h2>Notes</h2><ul>{''.join(f'<li>{note}</li>' for note in notes)}</ul></section>" if notes else ""


def _power(value: float) -> str:
    """``3.1×10⁻¹⁴``, readable without fonts or markup; plain where that is as short."""
    text = amount(value) if PLAIN_FROM <= abs(value) < PLAIN_TO else scientific(value)
    mantissa, mark, exponent = text.partition("e")
    power = f"×10{str(int(exponent)).translate(SUPERSCRIPTS)}" if mark else ""
    return mantissa.replace("-", "−") + power


def _prose(text: str) -> str:
    """A sentence as HTML, its powers of ten set as such."""
    return re.sub(r"\b\d\.\de[+-]\d+\b", lambda match: _power(float(match.group())), escape(text))
