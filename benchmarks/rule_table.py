"""Every learning rule by every family of charges: laws beside real runs, orders, noise, wrong siblings. Writes docs/rules.md.

    python benchmarks/rule_table.py

Some minutes on one thread. Nothing in the table is filled in by hand: laws are derived from the update equations when it runs, residuals
are those of runs that it makes (of torch.optim's own optimizers, and of textbook steps where torch has none), slopes are fitted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import noetherflow as nf
from noetherflow.errors import RuleError
from noetherflow.numeric.progress import shown

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.reference_rules import Torch  # noqa: E402
from support.rule_orders import SETTINGS, orders  # noqa: E402
from support.rule_siblings import ROUNDING, Cell, cells  # noqa: E402
from support.rule_table import CASES, FAMILIES, SGD, Run, network, run  # noqa: E402

HEAD = """# Learning rules by families

Made by `python benchmarks/rule_table.py` in {seconds:.0f} s; a thinner one is in the tests (`tests/bridge/test_rule_table.py`). One small
network with every family: a weight before a normalisation without a gain (scale, rotation), ReLU units (rescale), two linear layers
(GL(5)), and what cross-entropy ignores (translation). *Run*: torch.optim's own optimizer, or the textbook's step on the same gradients.
{verdict}

## Exact laws

Largest distance of the carried prediction from the run, relative to the sums behind the charge, over {steps} mini-batch steps; in brackets
how many wrong siblings are rejected, of how many: a generator with a factor on one weight, the generator of the other weights alone, every
mechanism's part left out or with the other sign, a momentum that forgets one per cent faster. Charges are Euclidean; *own metric*: those
under the diagonal that the rule divides by, or the mirror metric; there a family without a charge keeps a constraint on each step. A
rotation has an angular momentum in place of a charge. A dash: the rule leaves the family without a law there.

"""
ORDERS = """
## Orders

Fitted slope of what the continuous-time law leaves out, over four octaves of the step size, and the order that the law says. At fixed
time; at a fixed number of steps (marked *) where a rule has no flow to tend to.

"""
NOISE = """
## Noise

Mean of Q' over {runs} seeded mini-batch steps from one point against its derived expectation (99.9 % interval of each charge); in brackets
the wrong siblings that are rejected. A charge that is linear in the parameters is not moved by noise, nor an angular momentum. For other
rules none is derived ({refusal}).

"""
RUNS = 4000


def row(values: Iterable[str]) -> str:
    return "| " + " | ".join(values) + " |"


def head(columns: Sequence[str]) -> list[str]:
    return [row(columns), row("---" for _ in columns)]


def laws() -> tuple[list[str], bool]:
    """The table of exact laws, and whether everything holds and every sibling is rejected."""
    columns = [*FAMILIES, *(f"{family}, own metric" for family in FAMILIES)]
    lines, sound = head(["rule", "run", *columns]), True
    for name in shown(list(CASES), "exact laws"):
        own = run(name)
        found = {(c.family, c.metric): c for c in cells(own)}
        sound &= all(c.holds and c.rejected == len(c.siblings) for c in found.values())
        texts = [entry(found.get((family, metric)), own) for metric in ("Euclidean", "own") for family in FAMILIES]
        lines.append(row([name, "torch" if isinstance(CASES[name].make(), Torch) else "textbook", *texts]))
    return lines, sound


def entry(cell: Cell | None, own: Run) -> str:
    if cell is None:
        return "–"
    mark = "" if cell.holds else f" **fails (> {ROUNDING:g})**"
    return f"{cell.finding.residual:.0e} ({cell.rejected}/{len(cell.siblings)}){mark}"


def slopes() -> tuple[list[str], bool]:
    lines, sound = head(["rule", *FAMILIES[:-1]]), True
    for name in shown(list(SETTINGS), "orders"):
        found = orders(name)
        texts = []
        for family in FAMILIES[:-1]:
            order, fitted = found[family]
            sound &= fitted is None or abs(fitted.slope - order) < 0.1
            texts.append("nothing left out" if fitted is None else f"{fitted.slope:.2f} ({order}{'*' if SETTINGS[name].steps else ''})")
        lines.append(row([name, *texts]))
    return lines, sound


def noise() -> tuple[list[str], bool]:
    model, _, start = network()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (12,), generator=generator)
    lines, sound = head(["rule", "scale", "rescale", "linear"]), True
    for name, options in shown([item for item in SGD.items() if "maximize" not in item[1]], "noise"):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(start[n])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
        report = nf.verify_drift(model, optimizer, "cross_entropy", x, y, batch=2, runs=RUNS, warmup=3)
        verdicts = {law.split()[0]: verdict for law, verdict in report.verdicts.items()}
        sound &= report.holds
        judged = (verdicts[family] for family in ("scale", "rescale", "linear"))
        texts = [f"{v.status} ({sum(v.rejected.values())}/{len(v.rejected)})" for v in judged]
        lines.append(row([name, *texts]))
    return lines, sound


def refusal() -> str:
    try:
        run("Adam", steps=1).laws[0].drift()
    except RuleError as error:
        return str(error).split(":")[0]
    return ""


def main() -> int:
    """Make the table; the status is 0 only if every law holds and every wrong sibling is rejected."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    (exact, a), (order, b), (drift, c) = laws(), slopes(), noise()
    sound = a and b and c
    verdict = "Every law holds, every order is within 0.1, every wrong sibling is rejected." if sound else "**Not everything holds.**"
    top = HEAD.format(seconds=time.monotonic() - begun, steps=len(run("SGD").steps), verdict=verdict)
    text = (
        top
        + "\n".join(exact)
        + "\n"
        + ORDERS
        + "\n".join(order)
        + "\n"
        + NOISE.format(runs=f"{RUNS:,}", refusal=refusal())
        + "\n".join(drift)
        + "\n"
    )
    (ROOT / "docs" / "rules.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
