"""Sums of sums as one sum: a sum that only another sum reads is written out in it, so that all addends, biases among them, meet at once.

(x + a) + (y + b) = x + a + y + b: what one addend shifts another may take back, whichever brackets the network has set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from noetherflow.symbolic.primitives import Add, Primitive, Program, Term, read_by


def flatten_sums(program: Program) -> None:
    """Write every sum that is read once, by a sum, out in that one; the program computes the same."""
    uses = Counter(root for step in program.steps for root in read_by(step))
    sums: dict[int, Add] = {}  # by the tensor that each makes, if it is read once
    gone: dict[int, int] = {}  # tensors that are no longer made -> the sum that they are part of
    steps: list[Primitive] = []
    for step in program.steps:
        written = _written_out(step, sums, gone) if isinstance(step, Add) else step
        if isinstance(written, Add) and uses[written.out.value.root] == 1:
            sums[written.out.value.root] = written
        steps.append(written)
    program.steps[:] = [step for step in steps if not (isinstance(step, Add) and step.out.value.root in gone)]
    for node, root in program.made.items():
        while root in gone:
            root = gone[root]
        program.made[node] = root


def _written_out(step: Add, sums: Mapping[int, Add], gone: dict[int, int]) -> Add:
    operands: list[Term] = []
    coefficients: list[int] = []
    for term, coefficient in zip(step.operands, step.coefficients, strict=True):
        inner = sums.get(term.value.root)
        if inner is None or inner.out.value.axes != term.value.axes:  # a view has other axes
            operands.append(term)
            coefficients.append(coefficient)
            continue
        label_of = dict(zip(inner.out.labels, term.labels, strict=True))
        operands += [replace(t, labels=tuple(None if label is None else label_of[label] for label in t.labels)) for t in inner.operands]
        coefficients += [coefficient * c for c in inner.coefficients]
        gone[term.value.root] = step.out.value.root
    return replace(step, operands=tuple(operands), coefficients=tuple(coefficients))
