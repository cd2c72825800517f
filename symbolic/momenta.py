"""Laws of angular momenta: what an antisymmetric generator has in place of a charge.

A family of rotations P -> P + X P, X antisymmetric, gives for every X the momentum ⟨ξ(θ), b⟩ = ½ ⟨X, K⟩ of one antisymmetric matrix

    K = Σ_P (b_P Pᵀ - P b_Pᵀ) ,

read off the generator here. Its law is one equation for the whole matrix. Rotations are families of their own behind a normalisation
without a gain and for the pairs of RoPE; they are also the antisymmetric half of every GL(n) family, whose symmetric half has the charges
(a producer's X P and a consumer's -Xᵀ P are then one rotation). Behind a gain a rotation acts as γ X γ⁻¹ and is not antisymmetric; nor is
what a bias takes back behind a weight. Those have no law here.

Source: marcotte2024keep for momentum flows; own at finite step size (`noetherflow.symbolic.angular`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.alike import once_for_all_alike
from noetherflow.symbolic.angular import ANGULAR, MomentumBalance
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.momentum_flow import momentum_flow
from noetherflow.symbolic.one_forms import derivative, on_support, renamed
from noetherflow.symbolic.rules import Rule
from noetherflow.symbolic.symmetries import Symmetry

GENERATOR = sp.IndexedBase("X")
STEPS = sp.Symbol("n", integer=True, nonnegative=True)


@dataclass(frozen=True)
class MomentumLaw:
    """One family of angular momenta and how a learning rule moves them.

    Attributes
    ----------
    symmetry : Symmetry
        The family whose antisymmetric generators these are.
    rule : Rule
    group_of : mapping of str to int
        Parameter group of each parameter that the symmetry moves.
    balance : MomentumBalance
        The exact discrete law, one equation for the whole matrix.
    """

    symmetry: Symmetry
    rule: Rule
    group_of: Mapping[str, int]
    balance: MomentumBalance

    @property
    def groups(self) -> tuple[int, ...]:
        """The parameter groups it crosses, in the order in which its law numbers them."""
        return tuple(dict.fromkeys(self.group_of[name] for name in self.symmetry.parameters))

    @property
    def kind(self) -> str:
        """'rotation', or 'complex' for the phases that RoPE leaves free."""
        return "complex" if self.symmetry.kind == "complex" else "rotation"

    @property
    def name(self) -> str:
        """That of the symmetry; of one that is more than rotations, its rotations."""
        return self.symmetry.name if self.symmetry.rotation else f"rotation in {self.symmetry.name}"

    @cached_property
    def momentum(self) -> sp.Expr:
        """The matrix K[..., i, i_2] as an indexed SymPy expression in the parameters and their buffers (or steps, ``Delta_...``)."""
        place = {group: i for i, group in enumerate(self.groups)}
        terms = []
        for action in self.symmetry.actions:
            p = place[self.group_of[action.parameter]]
            terms.append(self.balance.weights[p] * momentum(self.symmetry, action, "b" if self.balance.buffers[p] else "Delta"))
        whole = sp.Add(*terms)
        return _centred(whole, self.symmetry) if self.symmetry.centred else whole

    @cached_property
    def flow(self) -> sp.Eq | None:
        """The law in the limit of a momentum flow: e^{γt} ⟨ξ(θ), dθ/dt⟩ does not move."""
        return momentum_flow(self.balance)

    @property
    def terms(self) -> Mapping[str, sp.Expr]:
        """Mechanism -> its part of K' - K."""
        return self.balance.terms

    @cached_property
    def count(self) -> Size:
        """Number of independent momenta: as many as directions in which rotations move a generic point."""
        *spectators, n = self.symmetry.sizes
        centred = 1 if self.symmetry.centred else 0
        left = max(0, self.symmetry.unseen(+1, -1) - centred)
        count = _rotations(n - centred) - _rotations(left)
        for size in spectators:
            count = size * count
        return count

    @property
    def source(self) -> tuple[str, ...]:
        """Citation keys of its limits, published before; the law itself is derived here."""
        return ("marcotte2024keep", "tanaka2021noether")

    def solution(self) -> sp.Eq | None:
        """K after n steps with constant hyper-parameters, of an exact symmetry; None where sources move it, or none carries it on.

        Examples
        --------
        >>> from noetherflow.symbolic.angular import derive_momentum
        >>> from noetherflow.symbolic.rules import sgd_form
        >>> heavy = derive_momentum((sgd_form(momentum=True, nesterov=False, maximize=False),), True)
        >>> MomentumLaw(Symmetry("rotation", (), ()), Rule(()), {}, heavy).solution()
        Eq(K_n, K_0*mu**n)
        """
        if not self.balance.closed or not self.balance.lasting or self.balance.sources:
            return None
        factor = self.balance.equations[0].rhs.coeff(ANGULAR, 1)
        return sp.Eq(sp.Symbol("K_n", real=True), factor**STEPS * sp.Symbol("K_0", real=True))

    def latex(self) -> str:
        """Momentum and law in LaTeX."""
        return rf"K = {momentum_formula(self)}\qquad {self.balance.latex()}"

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"


@once_for_all_alike
def turns(symmetry: Symmetry) -> bool:
    """Whether a family holds antisymmetric matrices that act on each parameter by an antisymmetric operator.

    Seen from the generator's entries: with X antisymmetric, ∂ξ[e]/∂P[e'] = -∂ξ[e']/∂P[e] for all entries of one parameter, and nothing
    depends on another.
    """
    return (symmetry.matrix or symmetry.rotation) and all(_antisymmetric(symmetry, action) for action in symmetry.actions)


def _antisymmetric(symmetry: Symmetry, action: Action) -> bool:
    if action.factors or action.image:
        return False
    entry, change = symmetry.action_symbols(action)
    there, other = renamed((entry, change))
    slopes = on_support(derivative(change, there) + derivative(other, entry))
    return bool(sp.expand(slopes.replace(_is_generator, _ordered)) == 0)


def _is_generator(expression: sp.Expr) -> bool:
    return isinstance(expression, sp.Indexed) and expression.base == GENERATOR


def _ordered(entry: sp.Indexed) -> sp.Expr:
    """An entry of X above the diagonal, up to its sign."""
    *spectators, i, j = entry.indices
    first, second = sorted((i, j), key=str)
    return (1 if (first, second) == (i, j) else -1) * GENERATOR[(*spectators, first, second)] * (0 if i == j else 1)


def momentum(symmetry: Symmetry, action: Action, buffer: str = "b") -> sp.Expr:
    """One action's part of K[..., i, i_2]: what multiplies X[..., i, i_2] in ⟨ξ(P), b⟩, X being antisymmetric.

    Parameters
    ----------
    symmetry : Symmetry
    action : Action
        One of its actions, P -> X P or -Xᵀ P.
    buffer : str
        What the buffer of a parameter P is called: this, an underscore, and P.
    """
    entry, change = symmetry.action_symbols(action)
    own, place = entry.indices, action.places[-1]
    first, second = own[place], sp.Symbol(f"{symmetry.indices[-1][0]}_2", integer=True)
    scale, summed = change.as_coeff_Mul()
    x = next(x for x in summed.function.atoms(sp.Indexed) if x.base == GENERATOR)
    term = sp.IndexedBase(f"{buffer}_{entry.base}")[own] * summed.function / x
    row, column = x.indices[-2:]
    here = term.xreplace({row: first, column: second})
    there = term.xreplace({row: second, column: first})
    part = scale * (here - there)
    kept = {own[p] for p in action.places}
    ranges = [(letter, 0, index.size - 1) for letter, index in zip(own, action.patch.indices, strict=True) if letter not in kept]
    return sp.Sum(part, *ranges) if ranges else part


def _centred(matrix: sp.Expr, symmetry: Symmetry) -> sp.Expr:
    """(1 - J/n) K (1 - J/n), J full of ones: what rotations see that fix (1, ..., 1). J K J vanishes."""
    letter, n = symmetry.indices[-1]
    i, j, z = sp.Symbol(letter, integer=True), sp.Symbol(f"{letter}_2", integer=True), sp.Symbol("z", integer=True)
    return matrix - sp.Sum(matrix.xreplace({i: z}) + matrix.xreplace({j: z}), (z, 0, n - 1)) / n


def momentum_formula(law: MomentumLaw, limit: int = 4) -> str:
    """K in LaTeX as products of matrices, short enough for a table; Π takes the mean off along the index."""
    place = {group: i for i, group in enumerate(law.groups)}
    terms = []
    for action in law.symmetry.actions[:limit]:
        p = place[law.group_of[action.parameter]]
        name = rf"\mathtt{{{action.parameter.replace('_', chr(92) + '_')}}}"
        buffer = rf"b_{{{name}}}" if law.balance.buffers[p] else rf"\Delta {name}"
        weight = law.balance.weights[p]
        factor = "" if weight == 1 else sp.latex(weight) + r"\,"
        terms.append(rf"{factor}\left({buffer}\,{name}^\top - {name}\,{buffer}^\top\right)")
    whole = " + ".join(terms) + (r" + \cdots" if len(law.symmetry.actions) > limit else "")
    return rf"\Pi\left[{whole}\right]\Pi" if law.symmetry.centred else whole


def turning(symmetries: Iterable[Symmetry]) -> list[Symmetry]:
    """The families that hold rotations with a law."""
    return [s for s in symmetries if turns(s) and s.sizes[-1] != 1]


def _rotations(n: Size) -> Size:
    return n * (n - 1) // 2 if isinstance(n, int) else n * (n - 1) / 2
