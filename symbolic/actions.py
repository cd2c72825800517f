"""Actions: what a generator does to one block of one parameter, as tensors and as symbols.

Actions are written with the methods that torch tensors have (`as_strided`, `exp`, `matrix_exp`, ...), so nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sympy as sp

from noetherflow.symbolic.graph import Size

Tensors = Mapping[str, Any]
Form = Literal["scale", "shift", "matrix", "rotation", "column", "image"]
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
class Factor:
    """A power of a block of a parameter, its dimensions along given dimensions of something larger."""

    parameter: str
    patch: Patch
    places: tuple[int, ...]
    power: int = 1

    @property
    def symbol(self) -> sp.Expr:
        """What stands for the parameter in formulas."""
        name = _name(self.parameter, self.patch)
        return sp.IndexedBase(name) if self.places else sp.Symbol(name)

    def spread(self, params: Tensors, rank: int) -> Any:
        """The factor with `rank` dimensions, so that it broadcasts."""
        block = self.patch.view(params[self.parameter].detach())
        return _spread(block if self.power == 1 else block**self.power, self.places, rank)


@dataclass(frozen=True, slots=True)
class Image:
    """What coefficients v become behind weights: the sum of v times the factors, over all dimensions but those kept, in that order.

    `arguments` are the dimensions that the family's indices run along.
    """

    factors: tuple[Factor, ...]
    sizes: tuple[Size, ...]
    arguments: tuple[int, ...]
    kept: tuple[int, ...]

    def of(self, params: Tensors, coefficients: Any) -> Any:
        """The image, with the dimensions of the block it is added to."""
        rank = len(self.sizes)
        product = _spread(coefficients, self.arguments, rank)
        for factor in self.factors:
            weight = factor.spread(params, rank)
            product = product.to(weight.dtype) * weight
        summed = [d for d in range(rank) if d not in self.kept]
        total = product.expand(self.sizes).sum(summed) if summed else product.expand(self.sizes)
        left = sorted(self.kept)
        return total.permute([left.index(d) for d in self.kept]) if left else total


@dataclass(frozen=True, slots=True)
class Action:
    """What a generator with coefficients a does to one block of one parameter P.

    scale     P -> weight * a[indices] * P
    shift     P -> weight * a[indices] (times factors)
    matrix    P -> X P (weight 1) or -X^T P (weight -1) along the last of `places`; earlier places are spectators
    rotation  P -> g X g^-1 P with X antisymmetric and factors g (gains)
    column    P -> g a <1/g, P> (weight 1) or -<g a, P> / g (weight -1): X = a 1^T along the place, or its transpose
    image     P -> weight * W a, with other parameters W

    Parameters
    ----------
    parameter : str
    patch : Patch
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it (none for an image).
    weight : sympy.Rational
    form : 'scale', 'shift', 'matrix', 'rotation', 'column' or 'image'
    factors : tuple of Factor
    image : Image, optional
    """

    parameter: str
    patch: Patch
    places: tuple[int, ...]
    weight: sp.Rational
    form: Form
    factors: tuple[Factor, ...] = ()
    image: Image | None = None

    def spread(self, direction: Any) -> Any:
        """Coefficients a, shaped so that they broadcast over the block."""
        return _spread(direction, self.places, len(self.patch.indices))

    def change(self, params: Tensors, block: Any, coefficients: Any) -> Any:
        """The infinitesimal change of a block."""
        weight = float(self.weight)
        if self.image is not None:
            return weight * self.image.of(params, coefficients)
        if self.form in ("matrix", "rotation"):
            return self._dressed(params, block, self._matrix(coefficients).to(block.dtype))
        if self.form == "column":
            return self._column(params, block, coefficients, finite=False)
        spread = weight * self.spread(coefficients).to(block.dtype)
        for factor in self.factors:
            spread = spread * factor.spread(params, block.dim())
        return spread * block if self.form == "scale" else spread.expand(block.shape)

    def moved(self, params: Tensors, block: Any, coefficients: Any) -> Any:
        """The block after the finite transformation; `params` are those before it."""
        if self.form in ("matrix", "rotation"):
            return self._dressed(params, block, self._matrix(coefficients).matrix_exp().to(block.dtype))
        if self.form == "column":
            return block + self._column(params, block, coefficients, finite=True)
        if self.form == "scale":
            return (float(self.weight) * self.spread(coefficients)).exp().to(block.dtype) * block
        return block + self.change(params, block, coefficients)

    def _matrix(self, x: Any) -> Any:
        return x if self.form == "rotation" or self.weight > 0 else -x.transpose(-1, -2)

    # exp(u p^T) = 1 + u p^T (e^r - 1) / r with r = <p, u>: here u = g a and p = 1 / g, hence r = Σ a; exchanged and negative for readers.

    def _column(self, params: Tensors, block: Any, coefficients: Any, *, finite: bool) -> Any:
        place, weight = self.places[0], float(self.weight)
        u = self.spread(coefficients).to(block.dtype)
        p = u.new_ones(u.shape)
        for gain in self.factors:
            power = gain.spread(params, block.dim())
            u, p = u * power, p / power
        r = weight * coefficients.sum().to(block.dtype)
        growth = weight * (r.expm1() / r if finite and float(r) else 1.0)
        u, p = (u, p) if weight > 0 else (p, u)
        return growth * u * (p * block).sum(place, keepdim=True)

    def _dressed(self, params: Tensors, block: Any, matrix: Any) -> Any:
        gains = [gain.spread(params, block.dim()) for gain in self.factors]
        for gain in gains:
            block = block / gain
        block = _applied(matrix, block, self.places)
        for gain in gains:
            block = block * gain
        return block

    def symbols(self, indices: tuple[tuple[str, Size], ...]) -> tuple[sp.Expr, sp.Expr]:
        """(entry, change) as indexed SymPy expressions, given the names and sizes of the family's indices."""
        letters = self._letters(indices)
        base = sp.IndexedBase(self.symbol_name)
        entry = base[letters] if letters else sp.Symbol(self.symbol_name)
        if self.image is not None:
            return entry, self.weight * self._image_symbols(self.image, letters)
        own = tuple(letters[place] for place in self.places)
        if self.form in ("matrix", "rotation"):
            return entry, self._matrix_symbols(base, letters, indices[-1][1])
        if self.form == "column":
            return entry, self._column_symbols(base, letters, indices[-1][1])
        change = self.weight * _symbol("a", own) * (entry if self.form == "scale" else 1)
        return entry, sp.Mul(change, *(_power(factor, letters) for factor in self.factors))

    def _matrix_symbols(self, base: sp.IndexedBase, letters: tuple[sp.Symbol, ...], size: Size) -> sp.Expr:
        place = self.places[-1]
        summed = sp.Symbol("z", integer=True)
        replaced = tuple(summed if d == place else letter for d, letter in enumerate(letters))
        spectators = tuple(letters[p] for p in self.places[:-1])
        pair = (letters[place], summed) if self.form == "rotation" or self.weight > 0 else (summed, letters[place])
        product = sp.IndexedBase("X")[(*spectators, *pair)] * base[replaced]
        for gain in self.factors:
            product *= _power(gain, letters) / _power(gain, replaced)
        return self.weight * sp.Sum(product, (summed, 0, size - 1))

    def _column_symbols(self, base: sp.IndexedBase, letters: tuple[sp.Symbol, ...], size: Size) -> sp.Expr:
        place, summed = self.places[0], sp.Symbol("z", integer=True)
        replaced = tuple(summed if d == place else letter for d, letter in enumerate(letters))
        at, by = (letters, replaced) if self.weight > 0 else (replaced, letters)
        product = _symbol("a", (at[place],)) * base[replaced]
        for gain in self.factors:
            product *= _power(gain, at) / _power(gain, by)
        return self.weight * sp.Sum(product, (summed, 0, size - 1))

    def _image_symbols(self, image: Image, letters: tuple[sp.Symbol, ...]) -> sp.Expr:
        names = dict(zip(image.kept, letters, strict=True))
        every = tuple(names.get(d, sp.Symbol(f"z_{d}", integer=True)) for d in range(len(image.sizes)))
        product = sp.Mul(_symbol("a", tuple(every[d] for d in image.arguments)), *(_power(factor, every) for factor in image.factors))
        ranges = [(every[d], 0, size - 1) for d, size in enumerate(image.sizes) if d not in image.kept]
        return sp.Sum(product, *ranges) if ranges else product

    def _letters(self, indices: tuple[tuple[str, Size], ...]) -> tuple[sp.Symbol, ...]:
        own = {place: name for place, (name, _) in zip(self.places, indices, strict=False)}
        free = iter(letter for letter in INDEX_LETTERS if letter not in own.values())
        return tuple(sp.Symbol(own[d] if d in own else next(free), integer=True) for d in range(len(self.patch.indices)))

    @property
    def symbol_name(self) -> str:
        """The parameter's name, with where its block starts."""
        return _name(self.parameter, self.patch)


def _name(parameter: str, patch: Patch) -> str:
    start = [offset for offset in patch.offsets if offset != 0]
    return parameter + (f"@{','.join(map(str, patch.offsets))}" if start else "")


def _symbol(name: str, letters: tuple[sp.Symbol, ...]) -> sp.Expr:
    return sp.IndexedBase(name)[letters] if letters else sp.Symbol(name)


def _power(factor: Factor, letters: tuple[sp.Symbol, ...]) -> sp.Expr:
    return _symbol(_name(factor.parameter, factor.patch), tuple(letters[d] for d in factor.places)) ** factor.power


def _spread(tensor: Any, places: tuple[int, ...], rank: int) -> Any:
    """A tensor whose dimensions lie along some of `rank` dimensions, shaped so that it broadcasts."""
    order = sorted(range(len(places)), key=places.__getitem__)
    shape = [1] * rank
    for dim, place in enumerate(places):
        shape[place] = tensor.shape[dim]
    return (tensor.permute(order) if order else tensor).reshape(shape)


def _applied(x: Any, block: Any, places: tuple[int, ...]) -> Any:
    """Product of x (spectators..., n, n) and a block along its last place, spectators index by index."""
    dims = [*places, *(d for d in range(block.dim()) if d not in places)]
    lead = len(places)
    moved = block.permute(dims)
    flat = moved.reshape([*moved.shape[:lead], -1])
    result = (x @ flat).reshape(moved.shape)
    return result.permute([dims.index(d) for d in range(block.dim())])
