"""What ``noetherflow derive`` prints: symmetries, charges and formulas of a network, module by module."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sympy as sp
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from noetherflow.errors import ModelError
from noetherflow.symbolic.display import Line, lines, pattern, shortened
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.momenta import momentum_formula


def load(target: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model of the user's own, from ``file.py:function``.

    Parameters
    ----------
    target : str
        A file and a function in it without arguments, which returns ``(model, inputs)``; one tensor, or a tuple of inputs.

    Raises
    ------
    ModelError
        If there is no such file or function, or it returns something else.
    """
    path, _, name = target.rpartition(":")
    if not path or not Path(path).is_file():
        raise ModelError(f"'{target}' is neither a model of noetherflow's (see noetherflow list) nor FILE.py:FUNCTION of a file there is.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    built = getattr(module, name, lambda: None)()
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module)):
        raise ModelError(f"{name}() in {path} must return (model, inputs); got {type(built).__name__}.", target=target)
    model, inputs = built
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def show(laws: Laws, console: Console, *, latex: bool) -> None:
    """Print the table, the balance laws (once for each distinct one), and what is opaque."""
    found = lines(laws)
    console.print(_table(found))
    if latex:
        for line in (line for line in found if line.formula):
            text = f"{line.kind} {shortened(line.parameters)}:\n    Q = {line.formula}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    for equation in dict.fromkeys(equation for law in laws for equation in law.balance.equations):
        shown = f"  {sp.latex(equation)}" if latex else f"  {equation.lhs} = {equation.rhs}"
        console.print(shown, highlight=False, markup=False, soft_wrap=True)
    _show_momenta(laws, console, latex=latex)
    for node, why in laws.opaque.items():
        console.print(f"opaque: {node} ({why})", style="yellow", highlight=False, markup=False)
    without = laws.symmetries.dimension - sum((law.symmetry.dimension for law in laws), start=0)
    console.print(
        f"{_many(len(laws), 'law')}, {_many(laws.charges, 'charge')}; {_many(laws.symmetries.dimension, 'generator')}"
        + (f", {without:,} of them in families without a charge" if without else "")
        + (f"; {_momenta(laws)} of rotations" if laws.momenta else ""),
        style="bold",
        highlight=False,
    )


def _show_momenta(laws: Laws, console: Console, *, latex: bool) -> None:
    """What rotations have in place of charges: the families, and each distinct law once."""
    if not laws.momenta:
        return
    alike = Counter((law.kind, tuple(map(pattern, law.symmetry.parameters)), law.count) for law in laws.momenta)
    console.print("Angular momenta K of rotations, which have no charge:", style="bold", highlight=False)
    for (kind, parameters, count), families in alike.items():
        times = f"{families} x " if families > 1 else ""
        console.print(f"  {kind} {shortened(parameters)}: {times}{count}", highlight=False, markup=False, soft_wrap=True)
    for law in {momentum_formula(law): law for law in laws.momenta}.values() if latex else ():
        console.print(f"    K = {momentum_formula(law)}", highlight=False, markup=False, soft_wrap=True)
    for equation in dict.fromkeys(equation for law in laws.momenta for equation in law.balance.equations):
        shown = f"  {sp.latex(equation)}" if latex else f"  {equation.lhs} = {equation.rhs}"
        console.print(shown, highlight=False, markup=False, soft_wrap=True)


def _momenta(laws: Laws) -> str:
    total = sum((law.count for law in laws.momenta), start=0)
    noun = "angular momentum" if total == 1 else "angular momenta"
    return f"{total:,} {noun}" if isinstance(total, int) else f"{total} {noun}"


def _table(found: Sequence[Line]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("module", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("moves", overflow="fold", min_width=28)
    for name in ("families", "generators", "charges"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in found:
        moved = [name.removeprefix(line.module + ".") for name in line.parameters]
        numbers = [f"{n:,}" if isinstance(n, int) else str(n) for n in (len(line.families), line.generators, line.charges)]
        table.add_row(Text(line.module or "(across modules)"), Text(line.kind), Text(shortened(moved)), *numbers)
    return table


def _many(number: Any, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}" if isinstance(number, int) else f"{number} {noun}s"
