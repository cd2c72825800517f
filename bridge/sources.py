"""What a run tells a law besides the optimizer: currents that eps lets through, and what rounding acts on where gradients cancel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from noetherflow.bridge.bias_noise import BiasNoise
from noetherflow.bridge.bundles import Bundle
from noetherflow.bridge.capture import Capture
from noetherflow.bridge.clipping import Clipping, references
from noetherflow.bridge.norm_noise import NormNoise
from noetherflow.bridge.norm_places import NormPlaces
from noetherflow.bridge.placing import Placing
from noetherflow.bridge.precisions import types_met
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.symmetries import Absorber


@dataclass
class Sources:
    """Captures, law by law.

    Parameters
    ----------
    model : nn.Module
    graph : ArchitectureGraph
    laws : sequence of Law
    ignores_currents : bool
        Leave the currents out: a law that is wrong on purpose.

    Attributes
    ----------
    unseen : dict of int to str
        Number of a symmetry -> why its law could not be checked.
    met : dict of int to Met
        Number of a symmetry -> the coarsest types that its law meets.
    """

    model: nn.Module
    graph: ArchitectureGraph
    laws: Sequence[Law]
    ignores_currents: bool = False
    unseen: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parameters = dict(self.model.named_parameters(remove_duplicate=False))
        own = {module: path for path, module in self.model.named_modules()}
        everywhere = self.model.named_modules(remove_duplicate=False)
        self._modules = {path: own[module] for path, module in everywhere}  # a shared module has one name here
        self._producers = {law.symmetry.number: self._producing(law) for law in self.laws if law.symmetry.absorbers and not law.linear}
        producing = dict.fromkeys(path for paths in self._producers.values() for path in paths)
        places = NormPlaces.of(self.model, self.graph, self.laws)
        self._nodes = places.nodes
        self.met = types_met(self.graph, self.laws, self._nodes)
        self.capture = Capture(self.model, places.modules, tuple(producing), places.functions, places.choices)
        self._vanishing = {law.symmetry.number: law.symmetry.parameters[0] for law in self.laws if self._is_unfelt_bias(law)}
        self.biases = BiasNoise(self.model, self._bias_uses())
        needing = [law for law in self.laws if law.symmetry.absorbers or law.symmetry.number in self._vanishing]
        self._references = {law.symmetry.number: references(self.model, law.symmetry.parameters) for law in needing}
        self.clipping = Clipping(self.model, tuple(dict.fromkeys(name for names in self._references.values() for name in names)))

    def attach(self) -> None:
        """Put the hooks on."""
        self.capture.attach()
        self.biases.attach()
        self.clipping.attach()

    def detach(self) -> None:
        """Take the hooks off."""
        self.capture.detach()
        self.biases.detach()
        self.clipping.detach()

    def clear(self, *, measuring: bool) -> None:
        """A step is over; whether sizes are measured in the next one."""
        self.capture.clear()
        self.biases.clear()
        self.clipping.clear()
        self.capture.measuring = self.biases.measuring = measuring

    def of(self, b: Bundle) -> tuple[Tensor, Tensor]:
        """(predicted current; squares that rounding acts on at normalisations, in three rows) of every charge of a bundle."""
        device = next(self.model.parameters()).device
        current = torch.zeros(b.size, dtype=torch.float64, device=device)
        vanishing = torch.zeros((3, b.size), dtype=torch.float64, device=device)
        for law, start, stop in zip(b.laws, b.starts, b.starts[1:], strict=False):
            for site in law.symmetry.absorbers:
                if site.node in self._nodes or site in law.symmetry.breaking:
                    self._add_site(law, site, current[start:stop], vanishing[:, start:stop])
            if law.symmetry.number in self._vanishing:
                self._add_bias(law, vanishing[:2, start:stop])
        return current, vanishing

    def _add_site(self, law: Law, site: Absorber, current: Tensor, vanishing: Tensor) -> None:
        problem = self.capture.problem(site.node) if site.node in self._nodes else "no module computes it"
        problem = self.capture.choices.problem(Placing.of(site)) or problem
        met = self.met[law.symmetry.number]
        if problem and site not in law.symmetry.breaking and met.passed == met.absorbed:
            return  # nothing to predict there; what rounding does is bounded by the sizes of the gradients alone
        if problem:
            self.unseen[law.symmetry.number] = f"the normalisation at '{site.node}' (module '{site.module}'): {problem}"
            return
        placing = Placing.of(site)
        coefficient = float(site.coefficient) * self._factor(law)
        noise = self.capture.noise(placing)
        if noise is not None:
            vanishing += coefficient**2 * self._rows(law, noise)
        found = self.capture.current(placing)
        if found is not None and site in law.symmetry.breaking and not self.ignores_currents:
            current += coefficient * found

    def _factor(self, law: Law) -> float:
        return self.clipping.factor(self._references[law.symmetry.number])

    def _add_bias(self, law: Law, vanishing: Tensor) -> None:
        (action,) = law.symmetry.actions
        squares = self.biases.squares(action.parameter)
        if squares is not None:
            order = action.places
            placed = torch.stack([action.patch.view(row).permute(order).reshape(-1) for row in squares])
            vanishing += (float(action.weight) * self._factor(law)) ** 2 * placed

    def _rows(self, law: Law, noise: NormNoise) -> Tensor:
        """Squares of sums, of elements, and of sums per Σ θ²."""
        if law.linear:
            return torch.stack([noise.shift_sums, noise.shift_elements, torch.zeros_like(noise.shift_sums)])
        inputs = [self.capture.input_squares.get(path, 0.0) for path in self._producers[law.symmetry.number]]
        return torch.stack([noise.scale_sums, noise.scale_elements, max(inputs, default=0.0) * noise.weight_sums])

    # --- what is captured

    def _is_unfelt_bias(self, law: Law) -> bool:
        """Whether the law says that a bias has no gradient, and no normalisation tells what rounding makes of that."""
        symmetry = law.symmetry
        felt = symmetry.kind != "null" or any(site.node in self._nodes for site in symmetry.absorbers)
        return not felt and self._parameters[symmetry.parameters[0]].dim() == 1

    def _bias_uses(self) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for name in dict.fromkeys(self._vanishing.values()):
            for node, _ in self.graph.uses_of(name):
                path = self._modules.get(self.graph.nodes[node]["module"])
                if path is not None and name not in out.setdefault(path, []):
                    out[path].append(name)
        return out

    def _producing(self, law: Law) -> list[str]:
        """Modules that hold the weights of a scale which a normalisation absorbs."""
        uses = [node for name in law.symmetry.parameters for node, _ in self.graph.uses_of(name)]
        paths = dict.fromkeys(self.graph.nodes[node]["module"] for node in uses)
        return list(dict.fromkeys(self._modules[path] for path in paths if path in self._modules))
