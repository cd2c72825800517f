"""One forward and backward pass through the traced program, with the values and gradients at chosen nodes and at every use of a parameter.

The program is exported anew with the loss behind it and interpreted node by node, so that a node of the architecture graph is found by its
name, whether a module or a function computes it. Every use of a parameter reads a leaf of its own: gradients are known use by use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from noetherflow.bridge.trace import LOSS_NAMES, Loss, first_tensor
from noetherflow.errors import RunError, TraceError

PREFIX = "model."


@dataclass
class Replay:
    """What one pass told.

    Attributes
    ----------
    loss : float
    values : dict of str to Tensor
        Node -> its value when it was made, for those asked for that the program has.
    pulled : dict of str to Tensor
        Node -> ∂L/∂(its value then), for those asked for; one that the loss does not depend on is missing.
    uses : dict of (parameter, node) to Tensor
        ∂L/∂(parameter as this node reads it).
    """

    loss: float = 0.0
    values: dict[str, Tensor] = field(default_factory=dict)
    pulled: dict[str, Tensor] = field(default_factory=dict)
    uses: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def gradients(self, model: nn.Module) -> dict[str, Tensor]:
        """∂L/∂parameter of all parameters that have one, as a backward pass gives it; zero for those that the loss does not depend on."""
        out = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
        for (name, _), gradient in self.uses.items():
            out[name] = out[name] + gradient
        return out


def replay(
    model: nn.Module,
    inputs: tuple[Any, ...],
    loss: Loss,
    target: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    values: Collection[str] = (),
    pulled: Collection[str] = (),
) -> Replay:
    """Run the traced program once, forward and backward; the model and its statistics are left as they are.

    Parameters
    ----------
    model : nn.Module
    inputs : tuple
        Of the forward pass.
    loss : str, nn.Module or callable
        "cross_entropy" (classes on the last axis of logits, or axis 1 of images), "mse", or called as ``loss(output, target)``, or
        ``loss(output)`` where `target` is None.
    target : optional
    kwargs : mapping, optional
        Keyword inputs of the forward pass.
    values, pulled : collection of str
        Nodes whose value, and whose gradient, is wanted; names that the program lacks are passed over.

    Raises
    ------
    TraceError
        If the model does not export with its loss.
    RunError
        If the loss is None or unknown.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    >>> ran = replay(model, (torch.ones(4, 3),), "mse", torch.zeros(4, 2), values=["linear"], pulled=["gelu"])
    >>> tuple(ran.values["linear"].shape), tuple(ran.pulled["gelu"].shape), sorted(ran.uses)[0]
    ((4, 5), (4, 5), ('0.bias', 'linear'))
    """
    given, options = inputs if target is None else (*inputs, target), dict(kwargs or {})
    exported = _exported(_WithLoss(model, loss_function(loss), with_target=target is not None), given, options)
    with torch.enable_grad():
        return _Run(exported, model, frozenset(values), frozenset(pulled)).both(pytree.tree_leaves((given, options)))


def loss_function(loss: Loss) -> Callable[..., Tensor]:
    """A loss by its name, or as it was given; RunError for none or an unknown name."""
    if loss is None:
        raise RunError(f"A gradient needs a loss: one of {sorted(LOSS_NAMES)}, or a callable loss(output, target).")
    if not isinstance(loss, str):
        return loss
    if loss not in LOSS_NAMES:
        raise RunError(f"Unknown loss '{loss}'. Expected one of {sorted(LOSS_NAMES)}, or a callable loss(output, target).", loss=loss)
    return _cross_entropy if loss == "cross_entropy" else nn.functional.mse_loss


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Classes lie on the last axis of logits, on axis 1 of images (four axes and more), as in `noetherflow.bridge.trace`."""
    return nn.functional.cross_entropy(output if output.dim() in (1, 2) or output.dim() > 3 else output.movedim(-1, 1), target)


class _WithLoss(nn.Module):
    """A model with its loss behind it, which is given the output, or its tensor where it cannot take the output."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any], *, with_target: bool) -> None:
        super().__init__()
        self.model, self.loss, self.with_target = model, loss, with_target

    def forward(self, *inputs: Any, **options: Any) -> Any:
        given, target = (inputs[:-1], inputs[-1:]) if self.with_target else (inputs, ())
        return self.loss(first_tensor(self.model(*given, **options)), *target)


def _exported(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, inputs, options, strict=False)
    except Exception as err:  # torch.export raises many types
        raise TraceError(f"torch.export could not trace the model with its loss: {err}. Check inputs, target and loss.") from err


class _Run(torch.fx.Interpreter):
    """Interprets an exported program; a parameter is given out as a new leaf to every node that reads it."""

    def __init__(self, exported: torch.export.ExportedProgram, model: nn.Module, values: Collection[str], pulled: Collection[str]) -> None:
        super().__init__(exported.graph_module)
        self._signature, self._exported = exported.graph_signature, exported
        self._values, self._pulled, self.told = values, pulled, Replay()
        names = {id(p): name for name, p in model.named_parameters()}
        self._parameters = {name: (names[id(p)], p) for name, p in model.named_parameters(remove_duplicate=False)}
        self._holding: dict[str, str] = {}  # placeholder -> parameter
        self._leaves: dict[tuple[str, str], Tensor] = {}

    def both(self, inputs: Iterable[Any]) -> Replay:
        """Forward and backward."""
        given = iter(inputs)
        results = self.run(*[self._argument(spec, given) for spec in self._signature.input_specs])
        (loss,) = (
            result
            for spec, result in zip(self._signature.output_specs, results, strict=True)
            if spec.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)
        )
        self.told.loss = float(loss.detach())
        leaves = list(self._leaves.items())
        found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, [leaf for _, leaf in leaves], allow_unused=True)
        self.told.uses = {use: torch.zeros_like(leaf) if g is None else g for (use, leaf), g in zip(leaves, found, strict=True)}
        return self.told

    def _argument(self, spec: Any, given: Any) -> Any:
        match spec.kind:
            case InputKind.USER_INPUT:
                return next(given)
            case InputKind.PARAMETER if spec.target.removeprefix(PREFIX) in self._parameters:
                name, parameter = self._parameters[spec.target.removeprefix(PREFIX)]
                self._holding[spec.arg.name] = name
                return parameter.detach()
            case _:
                state: Mapping[str, Any] = {**self._exported.constants, **self._exported.state_dict}
                held = state[spec.target]
                return held.detach().clone() if isinstance(held, Tensor) else held

    def fetch_args_kwargs_from_env(self, n: torch.fx.Node) -> tuple[Any, Any]:
        """The arguments of a node; a parameter among them is a leaf of this node's own."""
        if n.op == "output":
            return super().fetch_args_kwargs_from_env(n)
        read: Any = torch.fx.map_arg((n.args, n.kwargs), lambda argument: self._read(argument, n))
        args, kwargs = read
        return args, kwargs

    def _read(self, argument: torch.fx.Node, reader: torch.fx.Node) -> Any:
        name = self._holding.get(argument.name, "")
        if not name or not self._parameters[name][1].requires_grad:
            return self.env[argument]
        return self._leaves.setdefault((name, reader.name), self.env[argument].clone().requires_grad_())

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run a node, and keep what was asked for."""
        result = super().run_node(n)
        if n.name in self._values:
            self.told.values[n.name] = result.detach().clone()
        if n.name in self._pulled and isinstance(result, Tensor) and result.requires_grad:
            result.register_hook(lambda gradient: self._keep(n.name, gradient))  # type: ignore[no-untyped-call]
        return result

    def _keep(self, node: str, gradient: Tensor) -> None:
        self.told.pulled[node] = gradient.detach()
