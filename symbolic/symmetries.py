"""A symmetry: a family of generators, its action on parameters, infinitesimal and finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic.actions import Action, Patch, Tensors
from noetherflow.symbolic.axes import multiply
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.picks import Chosen


@dataclass(frozen=True, slots=True)
class Absorber:
    """A normalisation that does not see this change of its input; for a scale, its eps breaks the symmetry by an exact current.

    Parameters
    ----------
    node, module : str
        Where it is.
    coefficient : sympy.Rational
        Change of the input (logarithmic scale, or shift) per unit of the generator.
    eps : float
    patch : Patch
        The part of the normalised tensor's kept axes (those that statistics are not taken along) that the family acts on.
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it.
    sizes : tuple of Size
        Sizes of the kept axes in the graph: the channels for BatchNorm, the batch and the positions for LayerNorm, the batch and the
        groups for GroupNorm.
    picked : tuple of Chosen
        The family tells apart what data chose (the expert, the token), which the tensor has no axis for: in `patch` and `sizes` an axis
        for each of these follows the kept ones.
    """

    node: str
    module: str
    coefficient: sp.Rational
    eps: float
    patch: Patch
    places: tuple[int, ...]
    sizes: tuple[Size, ...]
    picked: tuple[Chosen, ...] = ()


@dataclass(frozen=True, slots=True)
class Reach:
    """Where in a network a change of parameters is felt: what happens anywhere else does not matter to its law, rounding included.

    Parameters
    ----------
    passed : frozenset of str
        Nodes whose value moves, or where what moves meets what compensates it.
    absorbed : frozenset of str
        Nodes whose normalisation does not see the change.
    """

    passed: frozenset[str] = frozenset()
    absorbed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Symmetry:
    """A family of parameter transformations that leave the network's function (with the traced loss) unchanged on every batch.

    Attributes
    ----------
    kind : str
        'rescale' (scales that compensate), 'scale' (a scale that nothing sees), 'translation', 'null' (a parameter whose gradient
        vanishes identically), 'linear' (GL(n)), 'rotation', 'complex' (rotations of pairs, the phases that RoPE leaves free),
        'affine' (a shift that biases take back behind a weight). The last three have no charge.
    indices : tuple of (str, size)
        The indices that the coefficients run over; names are display letters.
    actions : tuple of Action
    absorbers : tuple of Absorber
        Normalisations that do not see the change.
    zero_mean : frozenset of int
        Positions of the indices over which coefficients must have zero mean.
    centred : bool
        Only rotations that fix (1, ..., 1).
    reach : Reach
        Where it is felt; empty for rotations, and where it is not known.
    """

    kind: str
    indices: tuple[tuple[str, Size], ...]
    actions: tuple[Action, ...]
    absorbers: tuple[Absorber, ...] = ()
    zero_mean: frozenset[int] = frozenset()
    centred: bool = False
    number: int = 0
    reach: Reach = field(default=Reach(), compare=False, repr=False)

    @property
    def matrix(self) -> bool:
        """Whether the family is a matrix algebra."""
        return self.kind == "linear"

    @property
    def rotation(self) -> bool:
        """Whether the family consists of rotations."""
        return self.kind in ("rotation", "complex")

    @property
    def breaking(self) -> tuple[Absorber, ...]:
        """Where an eps breaks the symmetry explicitly (see `noetherflow.symbolic.currents`); it is exact at eps = 0."""
        scales = any(action.form in ("scale", "matrix") for action in self.actions)
        return tuple(site for site in self.absorbers if scales and site.eps)

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes of the family's indices."""
        return tuple(size for _, size in self.indices)

    @cached_property
    def dimension(self) -> Size:
        """Number of independent generators (an int when the sizes are)."""
        if self.matrix:
            return multiply([*self.sizes, self.sizes[-1]])
        if self.rotation:
            *spectators, n = self.sizes
            return multiply([*spectators, _rotations(n - 1 if self.centred else n)])
        return multiply([size - int(position in self.zero_mean) for position, size in enumerate(self.sizes)])

    @cached_property
    def directions(self) -> Size:
        """Directions in which the family moves a generic point: fewer than generators where a matrix meets fewer columns than its size."""
        if self.matrix:
            *spectators, n = self.sizes
            return multiply([*spectators, n * n - self.unseen(+1) * self.unseen(-1)])
        if self.rotation:
            *spectators, n = self.sizes
            centred = 1 if self.centred else 0
            return multiply([*spectators, _rotations(n - centred) - _rotations(max(0, self.unseen(+1, -1) - centred))])
        return self.dimension

    def unseen(self, *signs: int) -> int:
        """How many rows of a matrix family act on nothing: its size less the columns of the blocks it moves with the given signs.

        Zero for symbolic sizes: they are taken to be small enough.
        """
        moved = [action for action in self.actions if (1 if action.weight > 0 else -1) in signs]
        columns = sum(multiply([i.size for d, i in enumerate(a.patch.indices) if d not in a.places]) for a in moved)
        left = self.sizes[-1] - columns
        return max(0, left) if isinstance(left, int) else 0

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters it moves."""
        return tuple(dict.fromkeys(action.parameter for action in self.actions))

    @property
    def name(self) -> str:
        """A short label: kind and first parameter, with the number of others."""
        first, *rest = self.parameters
        return f"{self.kind} {first}" + (f" +{len(rest)}" if rest else "")

    @cached_property
    def generator(self) -> sp.Dict:
        """SymPy dictionary: entry of a parameter -> its change, with coefficients a (or X for a matrix family)."""
        out: dict[sp.Expr, sp.Expr] = {}
        for action in self.actions:
            entry, change = self.action_symbols(action)
            out[entry] = out.get(entry, sp.S.Zero) + change
        return sp.Dict(out)

    def action_symbols(self, action: Action) -> tuple[sp.Expr, sp.Expr]:
        """(entry, change) of one action, as indexed SymPy expressions."""
        return action.symbols(self.indices)

    def coefficients(self, direction: Any) -> Any:
        """A flat direction as an array over the family's indices.

        Raises
        ------
        GraphError
            If its length is not `dimension`.
        """
        if not isinstance(self.dimension, int):
            raise GraphError(f"'{self.name}' has symbolic size {self.dimension}; substitute numbers before acting on tensors.")
        if tuple(direction.shape) != (self.dimension,):
            raise GraphError(
                f"'{self.name}' needs a direction of shape ({self.dimension},), one coefficient per generator; "
                f"got {tuple(direction.shape)}."
            )
        if self.matrix:
            return direction.reshape([*self.sizes, self.sizes[-1]])
        if self.rotation:
            return _antisymmetric(direction.reshape([*self.sizes[:-1], -1]), self.sizes[-1], self.centred)
        out = direction.reshape([size - int(position in self.zero_mean) for position, size in enumerate(self.sizes)])
        for axis in sorted(self.zero_mean):
            last = -out.sum(axis, keepdim=True)
            out = _appended(out, last, axis)
        return out

    def tangent(self, params: Tensors, direction: Any) -> dict[str, Any]:
        """The generator at a point, ξ(θ): exact up to rounding.

        Parameters
        ----------
        params : mapping of str to tensor
        direction : tensor, shape (dimension,)

        Returns
        -------
        dict of str to tensor
            The change of every parameter that moves; same shapes and dtypes.
        """
        coefficients = self.coefficients(direction)
        out: dict[str, Any] = {}
        for action in self.actions:
            tensor = params[action.parameter].detach()
            change = out.setdefault(action.parameter, tensor.new_zeros(tensor.shape))
            action.patch.view(change).add_(action.change(params, action.patch.view(tensor), coefficients))
        return out

    def transform(self, params: Tensors, direction: Any) -> dict[str, Any]:
        """The finite group element exp(direction): the network's function is unchanged (exactly in exact arithmetic, at eps = 0).

        Parameters
        ----------
        params : mapping of str to tensor
            By name, as in ``named_parameters()``.
        direction : tensor, shape (dimension,)

        Returns
        -------
        dict of str to tensor
            All of `params`; those that move are new tensors.
        """
        coefficients = self.coefficients(direction)
        out = dict(params)
        for name in self.parameters:
            source = params[name].detach()
            out[name] = source.new_empty(source.shape).copy_(source)
        for action in self.actions:
            block = action.patch.view(out[action.parameter])
            block.copy_(action.moved(params, block, coefficients))
        return out

    def _repr_latex_(self) -> str:
        rows = r"\\ ".join(rf"\delta {sp.latex(entry)} &= {sp.latex(change)}" for entry, change in self.generator.items())
        return rf"$\displaystyle \begin{{aligned}}{rows}\end{{aligned}}$"


class Symmetries(Sequence[Symmetry]):
    """All symmetries found for a graph, independent of one another as a whole.

    Attributes
    ----------
    opaque : dict
        Node -> reason, for every operation that nothing was allowed through.
    axis_classes : dict
        Parameter -> class number of each of its axes (for drawing); equal numbers share an index.
    """

    def __init__(self, members: Sequence[Symmetry], opaque: Mapping[str, str], axis_classes: Mapping[str, tuple[int, ...]]) -> None:
        self._members = tuple(members)
        self.opaque = dict(opaque)
        self.axis_classes = dict(axis_classes)

    def __getitem__(self, item: Any) -> Any:
        return self._members[item]

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Symmetry]:
        return iter(self._members)

    @property
    def dimension(self) -> Size:
        """Total number of independent generators."""
        return sum((s.dimension for s in self._members), start=0)

    @property
    def directions(self) -> Size:
        """Total number of directions in which they move a generic point."""
        return sum((s.directions for s in self._members), start=0)

    def moving(self, parameter: str) -> tuple[Symmetry, ...]:
        """The symmetries that move one parameter."""
        return tuple(s for s in self._members if parameter in s.parameters)

    def __repr__(self) -> str:
        lines = [f"  {s.name}: dimension {s.dimension}" for s in self._members]
        opaque = [f"  opaque: {node} ({why})" for node, why in self.opaque.items()]
        return "\n".join([f"{len(self)} families, {self.dimension} generators", *lines, *opaque])


def _rotations(n: Size) -> Size:
    """Dimension of so(n)."""
    return n * (n - 1) // 2 if isinstance(n, int) else n * (n - 1) / 2


def _antisymmetric(entries: Any, size: int, centred: bool) -> Any:
    """Antisymmetric matrices of their entries above the diagonal; centred ones in a basis of what is orthogonal to (1, ..., 1)."""
    n = size - 1 if centred else size
    out = entries.new_zeros([*entries.shape[:-1], n, n])
    upper = entries.new_ones([n, n]).triu(1) > 0
    out[..., upper] = entries
    out = out - out.transpose(-1, -2)
    if not centred:
        return out
    basis = entries.new_ones([size, n]).triu()  # Helmert's: (1, ..., 1, -k, 0, ..., 0) / sqrt(k (k + 1))
    basis.diagonal(-1).copy_(-entries.new_ones([n]).cumsum(0))
    basis = basis / basis.norm(dim=0)
    return basis @ out @ basis.transpose(0, 1)


def _appended(array: Any, last: Any, axis: int) -> Any:
    shape = list(array.shape)
    shape[axis] += 1
    out = array.new_empty(shape)
    out.narrow(axis, 0, shape[axis] - 1).copy_(array)
    out.narrow(axis, shape[axis] - 1, 1).copy_(last)
    return out
