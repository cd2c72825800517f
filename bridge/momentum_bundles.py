"""Laws of angular momenta that share one law and its parameter groups, evaluated as one flat vector of matrices.

Every law has one antisymmetric matrix, or one for each index that it does not turn (a head, a pair of RoPE's): its blocks. What is read
lies row by row, whole; what is kept are the entries above the diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.bundles import Together, entries
from noetherflow.bridge.printing import Compiled, compile_expressions
from noetherflow.symbolic.angular import ANGULAR, MomentumBalance, Wedge, own
from noetherflow.symbolic.balance import EXPLICIT, in_group
from noetherflow.symbolic.momenta import MomentumLaw


class MomentumBundle(Together[MomentumLaw, MomentumBalance]):
    """Laws that share one balance; the flat vector is one of whole matrices."""

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(blocks, n) of each law."""
        sizes = [(entries(law), int(law.symmetry.sizes[-1])) for law in self.laws]
        return tuple((size // n**2, n) for size, n in sizes)

    @cached_property
    def kept(self) -> tuple[slice, ...]:
        """Where each law's entries above the diagonal lie among all that are kept, block by block."""
        counts = [blocks * (n * (n - 1) // 2) for blocks, n in self.shapes]
        return tuple(slice(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts)))

    @property
    def count(self) -> int:
        """Number of entries that are kept."""
        return sum(blocks * (n * (n - 1) // 2) for blocks, n in self.shapes)

    def upper(self, flat: Tensor, *, squares: bool = False) -> Tensor:
        """The entries above the diagonal of whole matrices, those of centred families after the projection.

        Parameters
        ----------
        flat : Tensor, shape (size,)
        squares : bool
            They are variances of independent entries, so the projection acts with its squared coefficients.

        Returns
        -------
        Tensor, shape (count,)
        """
        out = []
        for law, start, (blocks, n) in zip(self.laws, self.starts, self.shapes, strict=False):
            matrices = flat[start : start + blocks * n * n].reshape(blocks, n, n)
            if law.symmetry.centred:
                c = torch.eye(n, dtype=flat.dtype, device=flat.device) - 1 / n
                c = c.square() if squares else c
                matrices = c @ matrices @ c
            i, j = torch.triu_indices(n, n, 1, device=flat.device)
            out.append(matrices[:, i, j].reshape(-1))
        return torch.cat(out)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """left_i right_j + left_j right_i of rows, as whole matrices.

        Parameters
        ----------
        left, right : Tensor, shape (size,)
            A number for each row, from the start of each law's place on (the rest is not looked at).
        """
        out = []
        for start, (blocks, n) in zip(self.starts, self.shapes, strict=False):
            x, y = (rows[start : start + blocks * n].reshape(blocks, n) for rows in (left, right))
            product = x.unsqueeze(-1) * y.unsqueeze(-2)
            out.append((product + product.mT).reshape(-1))
        return torch.cat(out)

    @cached_property
    def step(self) -> Compiled:
        """One step: every mechanism's part of K' - K; currents are none, for nothing breaks a rotation."""
        return compile_expressions({(m,): self._hidden(term) for m, term in self.balance.terms.items() if m != EXPLICIT})

    @cached_property
    def response(self) -> Compiled:
        """How much of K is in K', how errors travel; and the weights of the groups."""
        whole = sp.Add(self.balance.before, *self.balance.terms.values())
        out: dict[tuple[str, ...], sp.Expr] = {("weight", str(p)): w for p, w in enumerate(self.balance.weights)}
        return compile_expressions(out | {("momentum",): sp.expand(whole).coeff(ANGULAR, 1)})

    @cached_property
    def sources(self) -> tuple[tuple[int, sp.Symbol, tuple[str, str]], ...]:
        """(position of the group, symbol of the pairing in `step`, names of the two vectors) of every pairing that is measured."""
        out = []
        for pairing in self.balance.sources:
            names = [v.name for v in pairing.args]
            groups = len(self.groups)
            position = 0 if groups == 1 else next(int(n.rsplit("_", 1)[1]) for n in names)
            plain = [n if groups == 1 else n.rsplit("_", 1)[0] for n in names]
            out.append((position, _symbol(pairing), (plain[0], plain[1])))
        return tuple(out)

    def _hidden(self, term: sp.Expr) -> sp.Expr:
        return term.xreplace({pairing: _symbol(pairing) for pairing in term.atoms(Wedge)})

    def hyperparameters(self, values: Mapping[int, Mapping[str, float]]) -> dict[sp.Expr, float]:
        """Numbers for the law's symbols from each group's values."""
        out: dict[sp.Expr, float] = {}
        for p, (form, group) in enumerate(zip(self.balance.forms, self.groups, strict=True)):
            for name, symbol in form.hyperparameters:
                out[symbol] = values[group][name]  # symbols that all groups share are equal by construction
                out[in_group(symbol, p, len(self.groups))] = values[group][name]
        return out

    def name(self, position: int) -> sp.Symbol:
        """Symbol of one group's momentum."""
        return own(position, len(self.groups))


def _symbol(pairing: Wedge) -> sp.Symbol:
    return sp.Symbol(str(pairing))


def bundle_momenta(laws: Sequence[MomentumLaw]) -> tuple[MomentumBundle, ...]:
    """Gather laws by balance law and groups.

    Examples
    --------
    >>> bundle_momenta([])
    ()
    """
    found: dict[tuple[int, tuple[int, ...]], list[MomentumLaw]] = {}
    for law in laws:
        found.setdefault((id(law.balance), law.groups), []).append(law)
    return tuple(MomentumBundle(tuple(members), members[0].balance, members[0].groups) for members in found.values())
