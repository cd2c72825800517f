"""What one site lets through: the current per index of a family, from the value and the gradient there.

A site is taken at its word only after its values have been looked at: a function must be the one that was differentiated, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from noetherflow.bridge.elementwise import evaluate
from noetherflow.bridge.norm_layout import NORMALIZATIONS, Layout
from noetherflow.bridge.norm_modules import normalized
from noetherflow.bridge.placing import Placing
from noetherflow.bridge.printing import compile_expressions
from noetherflow.bridge.replay import Replay
from noetherflow.errors import RunError
from noetherflow.numeric.rounding import unit_roundoff
from noetherflow.symbolic.broken import Site
from noetherflow.symbolic.class_shifts import ClassSite, shift_defect
from noetherflow.symbolic.currents import EPS, VARIANCE, scale_defect
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.picks import index_of
from noetherflow.symbolic.symmetries import Absorber
from noetherflow.symbolic.tying import Use

ROUNDINGS: Final = 64.0
"""How many roundoffs of its size a value may differ from the function it is taken to be."""

_EPS_DEFECT = compile_expressions({("defect",): scale_defect()})


@dataclass(frozen=True)
class Pass:
    """A pass that was made, beside the graph whose nodes it went through.

    Parameters
    ----------
    graph : ArchitectureGraph
    ran : Replay
    parameters : mapping of str to Tensor
        In float64.
    """

    graph: ArchitectureGraph
    ran: Replay
    parameters: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def input_of(self, node: str) -> Tensor:
        """What a node with one input reads, in float64."""
        producers = [*self.graph.inputs_of(node).items()]
        slot, producer = next(((s, p) for s, p in producers if s in ("input", "0")), ("input", ""))
        return self.value(producer).double() if producer else self.parameters[self.graph.nodes[node]["parameters"][slot]]

    def value(self, node: str) -> Tensor:
        """What a node made."""
        if node not in self.ran.values:
            raise RunError(f"'{node}' is no single operation of the exported program, so nothing can be measured there.", node=node)
        return self.ran.values[node]

    def pulled(self, node: str) -> Tensor:
        """∂L/∂(the node's value), in float64; zero if the loss does not depend on it."""
        return self.ran.pulled.get(node, torch.zeros_like(self.value(node))).double()

    def placed(self, site: Site | Absorber, density: Tensor) -> Tensor:
        """A density at a site summed onto the charges of its family."""
        placing = Placing.of(site)
        index = index_of(self.graph, placing.chosen_at)
        return placing.summed(density, self.value(index) if index else None)

    def of_use(self, use: Use) -> Tensor:
        """∂L/∂(a shared parameter as one node reads it), in float64."""
        if (use.parameter, use.node) not in self.ran.uses:
            raise RunError(f"The exported program has no operation '{use.node}' that reads '{use.parameter}'.", node=use.node)
        return self.ran.uses[use.parameter, use.node].double()

    def check(self, node: str, expected: Tensor, what: str) -> None:
        """Refuse a site whose value is not what was differentiated."""
        value = self.value(node)
        scale = 1 + expected.abs() + self.input_of(node).abs().amax()
        if not bool(((expected - value.double()).abs() <= ROUNDINGS * unit_roundoff(value.dtype) * scale).all()):
            worst = float((expected - value.double()).abs().amax())
            raise RunError(
                f"'{node}' does not compute {what}: it differs by {worst:.2g}. The graph lacks a setting of the operation; use torch's "
                "defaults, or leave this family out.",
                node=node,
            )


def at_function(site: Site, there: Pass) -> Tensor:
    """The sum of coefficient · ∂L/∂y · defect(z) over all that the family's indices do not carry."""
    z = there.input_of(site.node)
    there.check(site.node, evaluate(site.function, z), str(site.function))
    density = there.pulled(site.node) * evaluate(site.defect, z)
    return float(site.coefficient) * there.placed(site, density)


def at_normalization(site: Absorber, there: Pass) -> Tensor:
    """The sum of coefficient · eps / (σ² + eps) · ⟨ŷ, ∂L/∂ŷ⟩ over all statistics that the family's indices do not carry."""
    data = there.graph.nodes[site.node]
    if data["operation"] not in NORMALIZATIONS:
        raise RunError(f"What eps lets through at the '{data['operation']}' of '{site.node}' is not known.", node=site.node)
    layout = Layout.of(there.graph, site.node)
    values, variance = normalized(layout, there.input_of(site.node), site.eps, torch.float64)
    gain = there.parameters.get(data["parameters"].get("weight", ""))
    pulled = (values * layout.rows(layout.gained(there.pulled(site.node), gain))).sum(-1)
    defect = _EPS_DEFECT({EPS: site.eps, VARIANCE: variance})[("defect",)]
    return float(site.coefficient) * there.placed(site, defect * pulled)


def at_class_site(site: ClassSite, there: Pass) -> Tensor:
    """The sum of coefficient · ∂L/∂y_t · h_t over the samples, without h_t where the shift is the same for all of them."""
    expected = there.input_of(site.node).logsumexp(-1)
    there.check(site.node, expected.reshape(there.value(site.node).shape), "the logarithm of the sum of exponentials along the last axis")
    density = float(site.coefficient * shift_defect()) * there.pulled(site.node).reshape(-1)
    if not site.weighted:
        return density.sum()
    features = there.input_of(site.reader)
    sums = density @ features.reshape(density.numel(), -1)
    return Placing(site.node, site.patch, site.places, tuple(sums.shape)).summed(sums)
