"""Which families are matrix algebras: where every operation that touches an index is linear in it, GL(n) acts, not only the diagonal.

A pattern with weights +1 and -1 on one index extends from diag(a) to any matrix X (by X on weights +1, by -X^T on weights -1) exactly if
every primitive that carries it either contracts the index between two tensors, hands it from one tensor to the result, or adds tensors.
A function of every element, a product that keeps the index in both factors, a window maximum or a normalisation breaks it down to the
diagonal.
"""

from __future__ import annotations

from noetherflow.symbolic.families import Family
from noetherflow.symbolic.primitives import Add, Apply, Contract, Join, Normalize, Pin, Primitive, Program, Term, cells


def matrix_index(program: Program, family: Family) -> int | None:
    """The atom along which a scale family extends to GL(n), or None.

    Other atoms of the family become spectators: one matrix for each of their values.
    """
    if not family.atoms or family.zero_mean or any(abs(c) != 1 for c in family.vector.values()):
        return None
    if any(len(u.indices) != len(family.atoms) for u in family.vector):
        return None
    return next((atom for atom in reversed(family.atoms) if _linear_in(program, family, atom)), None)


def _linear_in(program: Program, family: Family, atom: int) -> bool:
    return all(_passes(program, step, family, atom) for step in program.steps)


def _passes(program: Program, step: Primitive, family: Family, atom: int) -> bool:
    match step:
        case Contract():
            terms = (step.out, *step.operands)
            return all(_contract_passes(step, row) for row in _touched(program, terms, family, atom))
        case Apply():
            return step.factor is not None or not any(True for _ in _touched(program, (step.out, step.operand), family, atom))
        case Normalize():
            return not any(True for _ in _touched(program, (step.operand,), family, atom))
        case Add() | Pin():
            return True
        case Join():
            whole = Term(step.whole, tuple(str(i) if axis else None for i, axis in enumerate(step.whole.axes)))
            return not any(True for _ in _touched(program, (whole,), family, atom))


def _contract_passes(step: Contract, carriers: list[tuple[str, int]]) -> bool:
    """`carriers`: (label, index of the term) for every term in which the acted-upon index lies; term 0 is the result."""
    if not step.linear:
        return False
    for label in {label for label, _ in carriers}:
        holders = [number for name, number in carriers if name == label]
        if len(holders) != 2:  # contracted between two operands, or handed from one operand to the result
            return False
    return True


def _touched(program: Program, terms: tuple[Term, ...], family: Family, atom: int) -> list[list[tuple[str, int]]]:
    roots = {u.root for u in family.vector}
    if not any(term.value.root in roots for term in terms):
        return []
    out = []
    for row in cells(program.table, terms):
        carriers: list[tuple[str, int]] = []
        acted = False
        for number, (term, cell) in enumerate(zip(terms, row, strict=True)):
            places = {where for where, leaf in cell.leaves.items() if leaf.atom == atom}
            carriers.extend((label, number) for label, _ in places)
            acted |= any(
                u.root == term.value.root and u.block == cell.block and u.indices & {cell.leaves[w].identity for w in places}
                for u in family.vector
            )
        if acted:
            out.append(carriers)
    return out
