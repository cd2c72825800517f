"""A symmetry: a family of generators, its action on parameters, infinitesimal and finite.

Actions are written with the methods that torch tensors have (`as_strided`, `exp`, `matrix_exp`, ...), so nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic.axes import multiply
from noetherflow.symbolic.graph import Size

Tensors = Mapping[str, Any]
Form = Literal["scale", "shift", "matrix"]
INDEX_LETTERS = "ijklmnpqrstuvw"


@dataclass(frozen=True, slots=True)
class Index:
    """One index of a parameter: the axis it lies in, its size, its stride in elements of that axis, and its class."""

    axis: int
    size: Size
    stride: Size
    atom: int


@dataclass(frozen=True, slots=True)
class Patch:
    """A block of a parameter: where it starts on each axis, and its indices in order. The whole parameter is the usual case."""

    offsets: tuple[Size, ...]
    indices: tuple[Index, ...]

    def covers(self, tensor: Any) -> bool:
        """Whether the block is the whole tensor, axis by axis."""
        axes = [index.axis for index in self.indices]
        return axes == list(range(tensor.dim())) and [index.size for index in self.indices] == list(tensor.shape)

    def view(self, tensor: Any) -> Any:
        """The block of a tensor, without a copy, one dimension per index."""
        if self.covers(tensor):
            return tensor
        strides = [index.stride * tensor.stride(index.axis) for index in self.indices]
        start = sum(offset * tensor.stride(axis) for axis, offset in enumerate(self.offsets))
        return tensor.as_strided([index.size for index in self.indices], strides, tensor.storage_offset() + start)


@dataclass(frozen=True, slots=True)
class Action:
    """What a generator with coefficients a does to one block of one parameter P.

    scale   P -> weight * a[indices] * P
    shift   P -> weight * a[indices]
    matrix  P -> X P (weight 1) or -X^T P (weight -1) along the last of `places`; earlier places are spectators

    Parameters
    ----------
    parameter : str
    patch : Patch
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it.
    weight : sympy.Rational
    form : 'scale', 'shift' or 'matrix'
    """

    parameter: str
    patch: Patch
    places: tuple[int, ...]
    weight: sp.Rational
    form: Form

    def spread(self, direction: Any) -> Any:
        """Coefficients a, shaped so that they broadcast over the block."""
        order = sorted(range(len(self.places)), key=self.places.__getitem__)
        shape = [index.size if d in self.places else 1 for d, index in enumerate(self.patch.indices)]
        return (direction.permute(order) if order else direction).reshape(shape)


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
        The part of the normalised tensor's kept axes (a vector over channels) that the family acts on.
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it.
    """

    node: str
    module: str
    coefficient: sp.Rational
    eps: float
    patch: Patch
    places: tuple[int, ...]


@dataclass(frozen=True)
class Symmetry:
    """A family of parameter transformations that leave the network's function (with the traced loss) unchanged on every batch.

    Attributes
    ----------
    kind : str
        'rescale' (scales that compensate), 'scale' (a scale that nothing sees), 'translation', 'null' (a parameter whose gradient
        vanishes identically), 'linear' (GL(n)).
    indices : tuple of (str, size)
        The indices that the coefficients run over; names are display letters.
    actions : tuple of Action
    absorbers : tuple of Absorber
        Normalisations that do not see the change.
    """

    kind: str
    indices: tuple[tuple[str, Size], ...]
    actions: tuple[Action, ...]
    absorbers: tuple[Absorber, ...] = ()
    zero_mean: bool = False
    number: int = 0

    @property
    def matrix(self) -> bool:
        """Whether the family is a matrix algebra."""
        return self.kind == "linear"

    @property
    def breaking(self) -> tuple[Absorber, ...]:
        """Where an eps breaks the symmetry explicitly (see `noetherflow.symbolic.currents`); it is exact at eps = 0."""
        scales = any(action.form != "shift" for action in self.actions)
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
        return multiply([size - 1 for size in self.sizes] if self.zero_mean else list(self.sizes))

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
        letters = self._letters(action)
        base = sp.IndexedBase(_symbol_name(action))
        entry = base[letters] if letters else sp.Symbol(_symbol_name(action))
        own = tuple(letters[place] for place in action.places)
        if action.form == "matrix":
            return entry, self._matrix_change(action, base, letters)
        coefficient = sp.IndexedBase("a")[own] if own else sp.Symbol("a")
        return entry, action.weight * coefficient * (entry if action.form == "scale" else 1)

    def _matrix_change(self, action: Action, base: sp.IndexedBase, letters: tuple[sp.Idx, ...]) -> sp.Expr:
        place = action.places[-1]
        summed = sp.Symbol("z", integer=True)
        replaced = tuple(summed if d == place else letter for d, letter in enumerate(letters))
        spectators = tuple(letters[p] for p in action.places[:-1])
        pair = (letters[place], summed) if action.weight > 0 else (summed, letters[place])
        return action.weight * sp.Sum(sp.IndexedBase("X")[(*spectators, *pair)] * base[replaced], (summed, 0, self.sizes[-1] - 1))

    def _letters(self, action: Action) -> tuple[sp.Symbol, ...]:
        own = {place: name for place, (name, _) in zip(action.places, self.indices, strict=True)}
        free = iter(letter for letter in INDEX_LETTERS if letter not in own.values())
        return tuple(sp.Symbol(own[d] if d in own else next(free), integer=True) for d in range(len(action.patch.indices)))

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
        if not self.zero_mean:
            return direction.reshape(list(self.sizes))
        out = direction.reshape([size - 1 for size in self.sizes])
        for axis in range(len(self.sizes)):
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
            action.patch.view(change).add_(self._change(action, action.patch.view(tensor), coefficients))
        return out

    def _change(self, action: Action, block: Any, coefficients: Any) -> Any:
        weight = float(action.weight)
        if action.form == "matrix":
            x = coefficients if weight > 0 else -coefficients.transpose(-1, -2)
            return _applied(x.to(block.dtype), block, action.places)
        spread = weight * action.spread(coefficients).to(block.dtype)
        return spread * block if action.form == "scale" else spread.expand(block.shape)

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
            block.copy_(self._moved(action, block, coefficients))
        return out

    def _moved(self, action: Action, block: Any, coefficients: Any) -> Any:
        weight = float(action.weight)
        if action.form == "matrix":
            x = coefficients if weight > 0 else -coefficients.transpose(-1, -2)
            return _applied(x.matrix_exp().to(block.dtype), block, action.places)
        if action.form == "scale":
            return (weight * action.spread(coefficients)).exp().to(block.dtype) * block
        return block + weight * action.spread(coefficients).to(block.dtype)

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

    def moving(self, parameter: str) -> tuple[Symmetry, ...]:
        """The symmetries that move one parameter."""
        return tuple(s for s in self._members if parameter in s.parameters)

    def __repr__(self) -> str:
        lines = [f"  {s.name}: dimension {s.dimension}" for s in self._members]
        opaque = [f"  opaque: {node} ({why})" for node, why in self.opaque.items()]
        return "\n".join([f"{len(self)} families, {self.dimension} generators", *lines, *opaque])


def _symbol_name(action: Action) -> str:
    start = [offset for offset in action.patch.offsets if offset != 0]
    return action.parameter + (f"@{','.join(map(str, action.patch.offsets))}" if start else "")


def _applied(x: Any, block: Any, places: tuple[int, ...]) -> Any:
    """Product of x (spectators..., n, n) and a block along its last place, spectators index by index."""
    dims = [*places, *(d for d in range(block.dim()) if d not in places)]
    lead = len(places)
    moved = block.permute(dims)
    flat = moved.reshape([*moved.shape[:lead], -1])
    result = (x @ flat).reshape(moved.shape)
    return result.permute([dims.index(d) for d in range(block.dim())])


def _appended(array: Any, last: Any, axis: int) -> Any:
    shape = list(array.shape)
    shape[axis] += 1
    out = array.new_empty(shape)
    out.narrow(axis, 0, shape[axis] - 1).copy_(array)
    out.narrow(axis, shape[axis] - 1, 1).copy_(last)
    return out
