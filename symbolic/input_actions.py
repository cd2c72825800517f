"""How a linear action on the inputs of a network is absorbed by the parameters that read them.

Put a frame P, a square matrix, between the inputs and all that reads them: f(θ, P x). A symmetry of the framed network that moves P as
P -> exp(s Ω) P and the other parameters along -ξ_Ω says

    f(θ; exp(s Ω) x) = f(exp(s ξ_Ω) θ; x),                                                                  (1)

and so, for a loss on any data, ⟨ξ_Ω(θ), ∇L(θ)⟩ = d/ds L(θ; exp(s Ω) data) at s = 0. So which parameters read the inputs, and how each takes
up an action, needs no rule of its own: it is read off the symmetries that are derived for the framed graph. One linear layer gives
ξ_Ω = W Ω, so that the pairing is tr(Ωᵀ Wᵀ∇_W L); biases do not move; a convolution takes up what mixes its channels, which commutes with
sliding; a residual path around the first layer, or a ReLU before it, takes up nothing, or scales alone.

Source: own (the frame); gluch2021noether for the restriction of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph, Size
from noetherflow.symbolic.symmetries import Symmetry

FRAME: Final = "input frame"
VIEWS: Final = ("identity", "reshape")
POINTWISE: Final[dict[str, Any]] = {"groups": 1, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "padded": False}


@dataclass(frozen=True)
class InputAction:
    """A family of linear actions on the inputs that parameters absorb.

    Attributes
    ----------
    symmetry : Symmetry
        Of the framed graph; it moves the parameter `FRAME` and the readers.
    size : Size
        Numbers that an action mixes.
    """

    symmetry: Symmetry
    size: Size

    @property
    def readers(self) -> tuple[str, ...]:
        """The parameters that absorb it; empty for what no output sees."""
        return tuple(name for name in self.symmetry.parameters if name != FRAME)

    @property
    def algebra(self) -> str:
        """'matrices', 'rotations', 'centred rotations' or 'scales': what the generators Ω may be."""
        if self.symmetry.rotation:
            return "centred rotations" if self.symmetry.centred else "rotations"
        return "matrices" if self.symmetry.matrix else "scales"

    @property
    def generator(self) -> dict[sp.Expr, sp.Expr]:
        """Entry of a reader -> its change under ξ_Ω of equation (1), with X for Ω: minus what the framed symmetry does."""
        pairs = (self.symmetry.action_symbols(a) for a in self.symmetry.actions if a.parameter != FRAME)
        return {entry: _negative(change) for entry, change in pairs}

    @property
    def restriction(self) -> sp.Eq:
        """⟨ξ_Ω, ∇L⟩ = 0 for a loss averaged over the group, as an indexed SymPy equation; ``G_W`` is the gradient by W."""
        terms = [self._pairing(entry, change) for entry, change in self.generator.items()]
        return sp.Eq(sp.Add(*terms), 0, evaluate=False)

    def _pairing(self, entry: sp.Indexed, change: sp.Expr) -> sp.Expr:
        action = next(a for a in self.symmetry.actions if self.symmetry.action_symbols(a)[0] == entry)
        gradient = sp.IndexedBase(f"G_{entry.base}")[entry.indices]
        ranges = [(letter, 0, index.size - 1) for letter, index in zip(entry.indices, action.patch.indices, strict=True)]
        return sp.Sum(gradient * change, *ranges)

    def __str__(self) -> str:
        return f"{self.algebra} of {self.size} inputs, absorbed by {', '.join(self.readers) or 'nothing: no output sees them'}"

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {sp.latex(self.restriction)}$"


def _negative(change: sp.Expr) -> sp.Expr:
    return sp.expand(-change) if not isinstance(change, sp.Sum) else sp.Sum(-change.function, *change.limits)


def input_actions(graph: ArchitectureGraph, axis: int | None = None) -> tuple[InputAction, ...]:
    """The linear actions on the inputs that a network's parameters absorb, for every loss and every batch.

    Parameters
    ----------
    graph : ArchitectureGraph
        With one ``input`` that parameters read (or the first one, if a loss of your own has targets for further inputs).
    axis : int, optional
        The axis that an action mixes; 1 for the channels of images. By default the last axis, after the views that flatten it.

    Returns
    -------
    tuple of InputAction
        The largest families first: all matrices, rotations, scales. Empty where nothing is absorbed.

    Raises
    ------
    GraphError
        No input, or an axis that cannot have a frame.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (4, 3)), graph.add_parameter("b", (4,)), graph.add_parameter("v", (1, 4))
    >>> _ = graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w", "bias": "b"}, shape=(8, 4))
    >>> _ = graph.add_operation("a", "tanh", {"input": "h"}, shape=(8, 4))
    >>> _ = graph.add_operation("y", "linear", {"input": "a"}, {"weight": "v"}, shape=(8, 1))
    >>> (action,) = input_actions(graph)
    >>> print(action)
    matrices of 3 inputs, absorbed by w
    >>> action.generator
    {w[j, i]: Sum(X[z, i]*w[j, z], (z, 0, 2))}
    """
    with_frame = framed(graph, axis)
    size = with_frame.parameters[FRAME].shape[0]
    order = {"matrices": 0, "rotations": 1, "centred rotations": 1, "scales": 2}
    found = [InputAction(s, size) for s in symmetries(with_frame) if FRAME in s.parameters and s.kind != "translation"]
    return tuple(sorted(found, key=lambda action: order[action.algebra]))


def framed(graph: ArchitectureGraph, axis: int | None = None) -> ArchitectureGraph:
    """The same network with a square matrix `FRAME` between its input and all that reads it."""
    at = _flattened(graph) if axis is None else _first_input(graph)
    shape = graph.nodes[at]["shape"]
    out = ArchitectureGraph()
    for p in graph.parameters.values():
        out.add_parameter(p.name, p.shape, p.dtype, p.trainable)
    out.aliases.update(graph.aliases)
    for node in graph.topological_order():
        d = graph.nodes[node]
        inputs = {slot: FRAME if producer == at else producer for slot, producer in graph.inputs_of(node).items()}
        keep = {"shape": d["shape"], "dtype": d["dtype"], "module": d["module"]}
        out.add_operation(node, d["operation"], inputs, d["parameters"], **keep, **d["attributes"])
        if node == at:
            _add_frame(out, at, shape, len(shape) - 1 if axis is None else axis % len(shape))
    return out


def _add_frame(graph: ArchitectureGraph, at: str, shape: tuple[Size, ...], axis: int) -> None:
    size = shape[axis]
    if axis == len(shape) - 1:
        graph.add_parameter(FRAME, (size, size))
        graph.add_operation(FRAME, "linear", {"input": at}, {"weight": FRAME}, shape=shape)
    elif axis == 1 and len(shape) == 4:
        graph.add_parameter(FRAME, (size, size, 1, 1))
        graph.add_operation(FRAME, "convolution", {"input": at}, {"weight": FRAME}, shape=shape, **POINTWISE)
    else:
        raise GraphError(f"A frame on axis {axis} of an input of shape {shape} is not known. Give the last axis, or 1 for images.")


def _first_input(graph: ArchitectureGraph) -> str:
    for node in graph.topological_order():
        if graph.nodes[node]["operation"] == "input":
            return node
    raise GraphError("The graph has no input, so that nothing can act on it.")


def _flattened(graph: ArchitectureGraph) -> str:
    """The input, or the last of the views that alone read it."""
    at = _first_input(graph)
    for node in _only_readers(graph, at):
        if graph.nodes[node]["operation"] not in VIEWS:
            break
        at = node
    return at


def _only_readers(graph: ArchitectureGraph, node: str) -> Iterator[str]:
    while len(readers := list(graph.successors(node))) == 1:
        (node,) = readers
        yield node
