"""Learning rules in exact rational arithmetic: what a charge and its momenta really do, beside what a balance law says."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

import sympy as sp

from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance
from noetherflow.symbolic.kinetic_balance import GAIN
from noetherflow.symbolic.nonlinear import Sign, structure
from noetherflow.symbolic.pairings import Inner, Vector, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form

SIZE = 3
Entries = list[Fraction]
Table = dict[sp.Expr, sp.Rational]


def exact(x: Fraction) -> sp.Rational:
    return sp.Rational(x.numerator, x.denominator)


def rational(generator: random.Random) -> Fraction:
    return Fraction(generator.choice([-1, 1]) * generator.randint(1, 9), generator.randint(1, 7))


def dot(x: Entries, y: Entries) -> Fraction:
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


@dataclass
class Side:
    """One parameter group: ξ(θ) = Aθ + a, hyper-parameters, vectors. Atoms are whatever they like, but signs are signs."""

    form: Form
    matrix: list[Entries]
    shift: Entries
    hyper: dict[sp.Symbol, Fraction]
    vectors: dict[Vector, Entries]
    generator: random.Random
    current: Fraction = field(default=Fraction(0))

    @classmethod
    def random(cls, form: Form, generator: random.Random, *, linear: bool, hyper: Mapping[str, Fraction] | None = None) -> Side:
        rows = [[rational(generator) for _ in range(SIZE)] for _ in range(SIZE)]
        matrix = [[(rows[i][j] + rows[j][i]) * (not linear) for j in range(SIZE)] for i in range(SIZE)]
        shift = [rational(generator) * linear for _ in range(SIZE)]
        values = {symbol: (hyper or {}).get(name, rational(generator)) for name, symbol in form.hyperparameters}
        vectors = {v: [rational(generator) for _ in range(SIZE)] for v in (THETA, *(before for before, _ in form.buffers))}
        return cls(form, matrix, shift, values, vectors, generator)

    def a(self, x: Entries) -> Entries:
        return [dot(row, x) for row in self.matrix]

    def xi(self, at: Entries) -> Entries:
        return [m + s for m, s in zip(self.a(at), self.shift, strict=True)]

    def along(self, x: Entries) -> Fraction:
        return dot(self.xi(self.vectors[THETA]), x)

    @property
    def charge(self) -> Fraction:
        theta = self.vectors[THETA]
        return dot(theta, self.a(theta)) / 2 + dot(self.shift, theta)

    def number(self, coefficient: sp.Expr) -> Fraction:
        return Fraction(str(sp.sympify(coefficient).xreplace({s: exact(v) for s, v in self.hyper.items()})))

    def combine(self, expression: sp.Expr) -> Entries:
        out = [Fraction(0)] * SIZE
        for vector, coefficient in parts(expression).items():
            out = [o + self.number(coefficient) * x for o, x in zip(out, self.vectors[vector], strict=True)]
        return out

    def step(self) -> None:
        """Draw a gradient, then apply the update equations as they stand."""
        self.vectors[GRADIENT] = [rational(self.generator) for _ in range(SIZE)]
        self.current = dot(self.xi(self.combine(self.form.point)), self.vectors[GRADIENT])
        for vector in self.form.invariant:
            free, xi = [rational(self.generator) for _ in range(SIZE)], self.xi(self.vectors[THETA])
            self.vectors[vector] = [x - dot(xi, free) / dot(xi, xi) * y for x, y in zip(free, xi, strict=True)]
        atoms = structure(self.form).atoms
        for vector, expression in self.form.equations:
            self.vectors[vector] = self.atom(expression) if vector in atoms else self.combine(expression)

    def atom(self, expression: sp.Expr) -> Entries:
        if isinstance(expression, Sign):
            return [Fraction((x > 0) - (x < 0)) for x in self.combine(expression.args[0])]
        return [rational(self.generator) for _ in range(SIZE)]

    def finish(self) -> None:
        rate = self.hyper[self.form.rate]
        self.vectors[THETA] = [t - rate * u for t, u in zip(self.vectors[THETA], self.vectors[STEP], strict=True)]
        for before, after in self.form.buffers:
            self.vectors[before] = self.vectors[after]


def table(balance: Balance, sides: Sequence[Side], gain: Fraction, current: Fraction) -> Table:
    """Every symbol of a law but Q and K, exactly; call between a step and its end."""
    out: Table = {CURRENT: exact(current), GAIN: exact(gain)}
    for p, side in enumerate(sides):
        for symbol, x in side.hyper.items():
            out |= {symbol: exact(x), sp.Symbol(f"{symbol.name}_{p}", real=True): exact(x)}
        out[sp.Symbol(f"Q_{p}", real=True)] = exact(side.charge)
        for v, w in product(side.vectors, side.vectors):
            pair = (v, w) if len(sides) == 1 else (Vector(f"{v.name}_{p}"), Vector(f"{w.name}_{p}"))
            out[Inner(*pair)] = exact(dot(side.vectors[v], side.a(side.vectors[w])))
    for source in balance.breaking:
        side = sides[source.group]
        known, followed = side.along(side.vectors[source.vector]), side.along(side.combine(source.companion))
        out[source.symbol] = exact(known) - value(source.gain, out) * exact(followed)
    return out


def value(expression: sp.Expr, known: Mapping[sp.Expr, sp.Expr]) -> sp.Rational:
    by_name = {str(k): v for k, v in known.items()}
    plain = sp.sympify(expression).xreplace({pairing: by_name[str(pairing)] for pairing in sp.sympify(expression).atoms(Inner)})
    return plain.xreplace({s: by_name[str(s)] for s in plain.free_symbols})


def momenta(balance: Balance, sides: Sequence[Side], known: Table) -> Table:
    """Every K, from the buffers."""
    out: Table = {}
    for k, weights in balance.momentum_weights.items():
        before = balance.buffer_of(k, next(p for p, w in enumerate(weights) if w != 0))
        out[k] = sum(value(w, known) * exact(s.along(s.vectors[before])) for w, s in zip(weights, sides, strict=True) if w != 0)
    return out


def remainders(
    balance: Balance,
    sides: Sequence[Side],
    gain: Fraction = Fraction(3, 5),
    steps: int = 3,
    believed: Callable[[Fraction], Fraction] = lambda current: current,
) -> list[sp.Rational]:
    """Law minus truth for the charge and each carried momentum, over a few steps; `believed` is what the law takes for J."""
    out = []
    for _ in range(steps):
        charge = sum(exact(s.charge) for s in sides)
        for s in sides:
            s.step()
        known = table(balance, sides, gain, believed(sum((s.current for s in sides), Fraction(0))))
        before = momenta(balance, sides, known)
        predicted = [value(e.rhs, known | {CHARGE: charge} | before) for e in balance.equations]
        for s in sides:
            s.finish()
        out.append(predicted[0] - sum(exact(s.charge) for s in sides))
        after = momenta(balance, sides, known)
        out += [x - after[k] for x, k in zip(predicted[1:], balance.momenta, strict=False)]
    return out
