"""The exact balance law of a charge under a rule whose step is not linear in the gradients, or whose gradients are taken elsewhere.

With Δ = -η u, the two identities of `noetherflow.symbolic.balance` hold for any step:

    Q(θ + Δ) - Q(θ) = ⟨ξ(θ), Δ⟩ + ½⟨Δ, AΔ⟩,          ⟨ξ(θ + Δ), b'⟩ = ⟨ξ(θ), b'⟩ + ⟨Δ, A b'⟩.

⟨ξ, ·⟩ of a linear vector expands over θ (2Q), g (the current J), and the buffers (K, each with its own recursion). An atom d brings

    ⟨ξ, d⟩ = κ ⟨ξ, L⟩ + S,        S = ⟨ξ, d - κ L⟩ measured,

with its companion L (`noetherflow.symbolic.nonlinear`) and a free number κ: what d has in common with L is predicted, by invariance and
without measuring a gradient; the rest is kinetic symmetry breaking. The law would not be one at κ = 0, where all of ⟨ξ, d⟩ is measured; at
any other κ a wrong generator, momentum or decay fails as it does for gradient descent with the step size η κ.

Where the gradient is that of another point y(θ, b), ⟨ξ(θ), g⟩ = J - ⟨A(y - θ), g⟩. Where a family crosses parameter groups, only the sum of
their ⟨ξ, g⟩ is known: κ is then chosen in every group so that the sum is what enters, and momenta are measured instead of carried.

Source: own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, DISCRETIZATION, EXPLICIT, MOMENTUM, Balance, Breaking, in_group
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form
from noetherflow.symbolic.nonlinear import structure
from noetherflow.symbolic.pairings import Inner, Vector, inner, parts

GAIN = sp.Symbol("kappa", real=True)
KINETIC, DECAY = "kinetic_symmetry_breaking", "weight_decay"


@lru_cache(maxsize=256)
def derive_kinetic_balance(forms: tuple[Form, ...], linear: bool) -> Balance:
    """Derive the balance law of a charge that crosses the given groups, for any forms.

    Parameters
    ----------
    forms : tuple of Form
        One per parameter group.
    linear : bool
        Whether the charge is ⟨a, θ⟩ (A = 0) rather than ½⟨θ, Aθ⟩ (a = 0).

    Returns
    -------
    Balance
        Exact: no order in η is dropped. For forms that are linear it is the law of `derive_balance`, differently arranged.

    Raises
    ------
    RuleError
        If nothing of a step follows the gradient linearly, so that no law could be checked; or if the recursions of momenta do not close.

    Examples
    --------
    >>> from noetherflow.symbolic.rules_adaptive import rmsprop_form
    >>> derive_kinetic_balance((rmsprop_form(),), False).equations
    (Eq(Q', -J*eta*kappa - 2*Q*eta*kappa*lambda + Q - S*eta + eta**2*Inner(d, d)/2),)
    """
    motions = [Motion(form, p, len(forms), linear) for p, form in enumerate(forms)]
    for motion in motions:
        motion.check()
    return _alone(motions[0]) if len(forms) == 1 else _crossing(motions)


@dataclass(frozen=True)
class Motion:
    """One group's charge and momenta after a step, in its own symbols."""

    form: Form
    number: int
    groups: int
    linear: bool

    # --- vectors

    @cached_property
    def _table(self) -> Mapping[Vector, sp.Expr]:
        """What every made vector is along ξ: a linear one its combination, an atom κ times its companion and a vector of its own."""
        found = structure(self.form)
        return {**found.linear, **{atom: GAIN * L + self._rest(atom) for atom, L in found.atoms.items()}}

    def _rest(self, atom: Vector) -> Vector:
        return Vector(f"rest of {atom.name}")

    def base(self, combination: sp.Expr) -> dict[Vector, sp.Expr]:
        """Coefficients of ⟨ξ, ·⟩ over θ, g, the buffers before the step, and the rests of atoms."""
        out = sp.expand(combination)
        while made := [v for v in out.free_symbols if v in self._table]:
            out = sp.expand(out.xreplace({v: self._table[v] for v in made}))
        return parts(out)

    @cached_property
    def atoms(self) -> tuple[Vector, ...]:
        """Atoms that the step or a momentum needs."""
        rests = {v for coefficients in self._needed.values() for v in coefficients}
        return tuple(a for a in structure(self.form).atoms if self._rest(a) in rests)

    @cached_property
    def buffers(self) -> tuple[tuple[Vector, Vector], ...]:
        """Linear buffers that the step or another such buffer needs."""
        return tuple((before, after) for before, after in self.form.buffers if after in self._needed)

    @cached_property
    def _needed(self) -> dict[Vector, dict[Vector, sp.Expr]]:
        """The step and every buffer it needs, over the base."""
        out, queue, after = {}, [STEP], dict(self.form.buffers)
        for vector in queue:
            out[vector] = self.base(vector)
            queue += [after[v] for v in out[vector] if v in after and after[v] not in queue]
        return out

    # --- scalars

    def along(self, combination: sp.Expr) -> sp.Expr:
        """⟨ξ(θ), ·⟩ in Q, J, K and sources."""
        return sp.Add(*(c * self._scalar(v) for v, c in self.base(combination).items()))

    def _scalar(self, vector: Vector) -> sp.Expr:
        if vector == THETA:
            return CHARGE if self.linear else 2 * CHARGE
        if vector == GRADIENT:
            ahead = 0 if self.linear else inner(self.form.point - THETA, GRADIENT)
            return CURRENT - ahead
        known = {b: self.momentum(b) for b, _ in self.form.buffers}
        known |= dict.fromkeys(self.form.invariant, sp.S.Zero) | {self._rest(a): self.source(a) for a in structure(self.form).atoms}
        return known[vector]

    def momentum(self, before: Vector) -> sp.Symbol:
        """K of a buffer; without a number if it is the only one."""
        return sp.Symbol("K" if len(self.buffers) == 1 else f"K_{before.name}", real=True)

    def source(self, atom: Vector) -> sp.Symbol:
        """S of an atom."""
        return sp.Symbol("S" if len(self.atoms) == 1 else f"S_{atom.name}", real=True)

    # --- motion

    @cached_property
    def _split(self) -> tuple[sp.Expr, sp.Expr, Vector]:
        """The step as λ θ + c r with a single vector r."""
        found = structure(self.form)
        kept = {after for _, after in self.form.buffers} | found.atoms.keys()
        out: sp.Expr = STEP
        while made := [v for v in out.free_symbols if v in found.linear and v not in kept]:
            out = sp.expand(out.xreplace({v: found.linear[v] for v in made}))
        combination = parts(out)
        decay = combination.pop(THETA, sp.S.Zero)
        if len(combination) == 1:
            ((vector, coefficient),) = combination.items()
            return decay, coefficient, vector
        return sp.S.Zero, sp.S.One, STEP

    @cached_property
    def charge(self) -> sp.Expr:
        """Q' - Q."""
        eta, (decay, c, r) = self.form.rate, self._split
        first = -eta * self.along(STEP)
        if self.linear:
            return self._named(first)
        second = decay**2 * 2 * CHARGE + 2 * decay * c * self.along(r) + c**2 * Inner(r, r)
        return self._named(first + eta**2 * second / 2)

    def after(self, buffer: Vector) -> sp.Expr:
        """⟨ξ(θ'), b'⟩ of a buffer."""
        eta, (decay, c, r) = self.form.rate, self._split
        turned = 0 if self.linear else -eta * (decay * self.along(buffer) + c * inner(r, buffer))
        return self._named(self.along(buffer) + turned)

    def _named(self, expression: sp.Expr) -> sp.Expr:
        own = in_group(sp.expand(expression), self.number, self.groups)
        return own if self.groups == 1 else own.xreplace({CHARGE: sp.Symbol(f"Q_{self.number}", real=True)})

    def shown(self, symbol: sp.Expr) -> sp.Expr:
        """A symbol as the law names it."""
        return in_group(symbol, self.number, self.groups)

    @property
    def decays(self) -> frozenset[sp.Symbol]:
        """Hyper-parameters whose terms are booked as weight decay."""
        return frozenset(self.shown(s) for s, mechanism in self.form.mechanisms if mechanism == DECAY)

    @property
    def sources(self) -> frozenset[sp.Symbol]:
        """All S."""
        return frozenset(self.shown(self.source(a)) for a in self.atoms)

    def breaking(self, gain: sp.Expr) -> tuple[Breaking, ...]:
        """Its sources."""
        companions = structure(self.form).atoms
        return tuple(Breaking(self.shown(self.source(a)), gain, a, companions[a], self.number) for a in self.atoms)

    def check(self) -> None:
        """Refuse a form that no law follows from."""
        reach = [self.charge, *(self.after(after) for _, after in self.buffers)]
        if all(expression.coeff(CURRENT, 1) == 0 for expression in reach):
            raise RuleError(
                f"No law of {self.form.name} can be checked: nothing of its step follows the gradient linearly, so invariance has nowhere "
                "to enter. Write the step with the linear combination of g and buffers that it divides, signs or projects.",
                form=self.form.name,
            )


def _alone(motion: Motion) -> Balance:
    """The law of one group, momenta carried."""
    momenta = {motion.momentum(before): after for before, after in motion.buffers}
    moves = {k: motion.after(after) for k, after in momenta.items()}
    entangled = [k for k, move in moves.items() if any(move.coeff(other, 1) != 0 for other in momenta if other != k)]
    if entangled:
        raise RuleError(f"The momenta {entangled} of {motion.form.name} need one another; only separate recursions are carried.")
    charge_terms = _booked(_without(motion.charge, momenta), [motion], DISCRETIZATION)
    terms = {k: _booked(_without(move, momenta), [motion], MOMENTUM) for k, move in moves.items()}
    return Balance(
        forms=(motion.form,),
        weights=(sp.S.One,),
        momenta=tuple(momenta),
        charge_terms=charge_terms,
        momentum_terms=terms,
        momentum_factor={k: sp.factor(move.coeff(k, 1)) for k, move in moves.items()},
        momentum_in_charge={k: sp.factor(motion.charge.coeff(k, 1)) for k in momenta},
        momentum_weights=dict.fromkeys(momenta, (sp.S.One,)),
        closed=True,
        breaking=motion.breaking(GAIN),
        carried={motion.momentum(before): before for before, _ in motion.buffers},
    )


def _crossing(motions: list[Motion]) -> Balance:
    """The law across groups: gains that give every group's ⟨ξ, g⟩ one coefficient, momenta measured."""
    gains = _gains(motions)
    renamed = {motion.shown(GAIN): gain for motion, gain in zip(motions, gains, strict=True)}
    total = sp.S.Zero
    for motion in motions:
        known = motion.charge if motion is motions[0] else _without(motion.charge, [CURRENT])
        total += known.xreplace(renamed)
    total = sp.expand(total)
    momenta = {motion.shown(motion.momentum(b)): (motion, b) for motion in motions for b, _ in motion.buffers}
    return Balance(
        forms=tuple(motion.form for motion in motions),
        weights=tuple(sp.S.One for _ in motions),
        momenta=tuple(momenta),
        charge_terms=_booked(_without(total, momenta), motions, DISCRETIZATION),
        momentum_terms={k: {} for k in momenta},
        momentum_factor=dict.fromkeys(momenta, sp.S.Zero),
        momentum_in_charge={k: sp.factor(total.coeff(k, 1)) for k in momenta},
        momentum_weights={k: tuple(sp.S.One if m is motion else sp.S.Zero for m in motions) for k, (motion, _) in momenta.items()},
        closed=False,
        breaking=tuple(b for motion, gain in zip(motions, gains, strict=True) for b in motion.breaking(gain)),
        carried={k: before for k, (_, before) in momenta.items()},
    )


def _gains(motions: list[Motion]) -> list[sp.Expr]:
    """κ of each group in terms of the first one's."""
    first = motions[0].charge.coeff(CURRENT, 1).xreplace({motions[0].shown(GAIN): GAIN})
    out = [GAIN]
    for motion in motions[1:]:
        own = motion.shown(GAIN)
        rate = sp.expand(motion.charge.coeff(CURRENT, 1))
        if rate.coeff(own, 1) == 0:
            raise RuleError(
                f"A charge across {motions[0].form.name} and {motion.form.name} has no law: the second follows the gradient at a "
                "rate of its own. Give both parameter groups rules of one kind.",
                forms=(motions[0].form.name, motion.form.name),
            )
        out.append(sp.cancel((first - rate.coeff(own, 0)) / rate.coeff(own, 1)))
    return out


def _without(expression: sp.Expr, symbols: Iterable[sp.Symbol]) -> sp.Expr:
    return expression.xreplace(dict.fromkeys(symbols, sp.S.Zero))


def _booked(expression: sp.Expr, motions: list[Motion], default: str) -> dict[str, sp.Expr]:
    """Split a sum by mechanism: the current, the sources, decay, and the rest."""
    sources = frozenset[sp.Symbol]().union(*(m.sources for m in motions))
    decays = frozenset[sp.Symbol]().union(*(m.decays for m in motions))
    out: dict[str, sp.Expr] = {}
    for term in sp.Add.make_args(sp.expand(expression)):
        if term == 0:
            continue
        found = term.free_symbols
        kinds = ((EXPLICIT, {CURRENT}), (KINETIC, sources), (DECAY, decays))
        mechanism = next((name for name, symbols in kinds if found & symbols), default)
        out[mechanism] = out.get(mechanism, sp.S.Zero) + term
    return {mechanism: sp.factor(part) for mechanism, part in out.items()}
