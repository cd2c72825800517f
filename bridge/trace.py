"""From a torch module to an architecture graph, through `torch.export` in training form.

Works on any module that exports, also on the meta device, where a model of any size is traced without its weights. Shared parameters keep
one name (the others are aliases), frozen ones are marked, in-place operations are followed, and what has no name in the vocabulary is kept
under its own and treated as opaque.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn
from torch.export.graph_signature import InputKind

from noetherflow.bridge.aliasing import Memory, memory_of, mutates
from noetherflow.bridge.aten import read
from noetherflow.errors import TraceError
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.operations import OPERATIONS

Loss = str | nn.Module | Callable[..., torch.Tensor] | None

LOSS_NAMES: Final = {"cross_entropy": "cross_entropy", "mse": "mean_square"}
RECOGNISED: Final[dict[Any, str]] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "mean_square",
    nn.functional.cross_entropy: "cross_entropy",
    nn.functional.mse_loss: "mean_square",
}
PREFIX: Final = "model."


def trace(model: nn.Module, *example_inputs: Any, loss: Loss = None) -> ArchitectureGraph:
    """Trace a module to an `ArchitectureGraph`, the loss (if given) its last node.

    The module's weights and statistics are left as they are, and its mode (train or eval) is the one traced.

    Parameters
    ----------
    model : nn.Module
    *example_inputs
        What the forward pass takes; shapes matter, values do not (meta tensors do).
    loss : None, str, nn.Module or callable
        None: what holds for every loss on the outputs. "cross_entropy": classes on the last axis of logits, or on axis 1 of images (four
        axes and more). "mse". Or the user's own, called as ``loss(output, target)`` or ``loss(output)``: recognised or traced.

    Raises
    ------
    TraceError
        If the module does not export, or the loss cannot be called on its output.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(4, 3), loss="mse")
    >>> [graph.nodes[n]["operation"] for n in graph.topological_order()]
    ['input', 'linear', 'relu', 'linear', 'mean_square']
    """
    named = _named_loss(loss)
    wrapped, inputs = (model, example_inputs) if loss is None or named else _with_loss(model, example_inputs, loss)
    try:
        exported = torch.export.export(wrapped, tuple(inputs), strict=False)
    except Exception as err:  # torch.export raises many types
        raise TraceError(
            f"torch.export could not trace {type(model).__name__} on inputs {_described(inputs)}: {err}. "
            "Check the example inputs; data-dependent control flow must be removed or written with torch.cond.",
            model=type(model).__name__,
        ) from err
    builder = _Builder(exported, model, wrapped, prefix=PREFIX if wrapped is not model else "")
    builder.build()
    if named is not None:
        builder.end_in(named, "axis_by_rank" if isinstance(loss, str) else "")
    elif loss is None or not builder.ends_in_a_loss():
        builder.end_in("output", "")
    return builder.graph


def _named_loss(loss: Loss) -> str | None:
    if loss is None:
        return None
    if isinstance(loss, str):
        if loss not in LOSS_NAMES:
            raise TraceError(f"Unknown loss '{loss}'. Expected one of {sorted(LOSS_NAMES)}, or a callable loss(output, target).", loss=loss)
        return LOSS_NAMES[loss]
    if isinstance(loss, nn.Module):
        return RECOGNISED.get(type(loss))
    hashable: Any = loss
    return RECOGNISED.get(hashable) if isinstance(hashable, Hashable) else None


class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[..., Any], targets: int) -> None:
        super().__init__()
        self.model, self.loss, self.targets = model, loss, targets

    def forward(self, *inputs: Any) -> Any:
        if not self.targets:
            return self.loss(self.model(*inputs))
        return self.loss(self.model(*inputs[: -self.targets]), *inputs[-self.targets :])


def _with_loss(model: nn.Module, inputs: tuple[Any, ...], loss: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model with its loss behind it; the target's form is found by trying class numbers, then a tensor like the output, then none."""
    probe = torch.export.export(model, tuple(inputs), strict=False)
    output = first_tensor([n.meta["val"] for n in _result_nodes(probe)])
    device = output.device
    classes = torch.zeros((*output.shape[:1], *output.shape[2:]), dtype=torch.long, device=device)
    like = torch.zeros(tuple(output.shape), dtype=output.dtype, device=device)
    failures = []
    for target in ((classes,), (like,), ()):
        wrapped = _WithLoss(model, loss, len(target))
        try:
            torch.export.export(wrapped, (*inputs, *target), strict=False)
        except Exception as err:  # whatever the user's loss raises on a target of the wrong form
            failures.append(f"{[tuple(t.shape) for t in target]}: {err}")
        else:
            return wrapped, (*inputs, *target)
    raise TraceError(f"The loss could not be called on the model's output of shape {tuple(output.shape)}; tried targets {failures}.")


def first_tensor(values: Any) -> torch.Tensor:
    """The first floating-point tensor in nested outputs."""
    if isinstance(values, torch.Tensor) and values.is_floating_point():
        return values
    members = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else []
    for member in members:
        try:
            return first_tensor(member)
        except TraceError:
            continue
    raise TraceError("The model's output holds no floating-point tensor to put a loss on.")


def _result_nodes(exported: torch.export.ExportedProgram) -> list[Any]:
    output = next(n for n in reversed(exported.graph.nodes) if n.op == "output")
    return [n for n in _flat(output.args) if isinstance(n, torch.fx.Node)]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for member in value for leaf in _flat(member)]
    return [value]


def _described(inputs: tuple[Any, ...]) -> list[Any]:
    return [tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in inputs]


@dataclass
class _Builder:
    """Walks an exported program once and fills a graph."""

    exported: torch.export.ExportedProgram
    model: nn.Module
    wrapped: nn.Module
    prefix: str
    graph: ArchitectureGraph = field(default_factory=ArchitectureGraph)

    def __post_init__(self) -> None:
        self._made: dict[Any, str] = {}  # export node -> graph node that holds its present value
        self._held: dict[Any, str] = {}  # export placeholder -> parameter name
        self._memory = Memory()
        self._order = {node: i for i, node in enumerate(self.exported.graph.nodes)}
        by_identity: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            kept = by_identity.setdefault(id(parameter), name)
            self.graph.graph.setdefault("identities", {})[id(parameter)] = kept
            if kept == name:
                self.graph.add_parameter(name, tuple(parameter.shape), _dtype(parameter), parameter.requires_grad)
            else:
                self.graph.aliases[name] = kept
        exported = self.wrapped.named_parameters(remove_duplicate=False)
        self._names = {name: by_identity[id(p)] for name, p in exported if id(p) in by_identity}
        self._memory_of_parameters = {memory_of(p): by_identity[id(p)] for p in self.model.parameters()}

    def build(self) -> None:
        """Add every node."""
        kinds = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs if hasattr(spec.arg, "name")}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, kinds[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                self._constant(node)

    def end_in(self, operation: str, axis: str) -> None:
        """Close the graph with a loss on the first output, or with an output node on all of them."""
        results = [n for n in _result_nodes(self.exported) if n in self._made or n in self._held]
        if not results:
            raise TraceError("The model's output does not depend on any traced tensor.")
        if operation == "output":
            inputs, parameters = self._slots({str(i): n for i, n in enumerate(results)}, results[0])
            self.graph.add_operation("output", "output", inputs, parameters)
            return
        first = next((n for n in results if n.meta["val"].is_floating_point()), results[0])
        attributes: dict[str, Any] = {"axis": 1 if first.meta["val"].dim() > 3 else -1} if axis and operation == "cross_entropy" else {}
        inputs, parameters = self._slots({"input": first}, first)
        self.graph.add_operation("loss", operation, inputs, parameters, dtype=_dtype(first.meta["val"]), **attributes)

    def ends_in_a_loss(self) -> bool:
        """Whether all that is returned is one loss of the vocabulary."""
        made = [self._made.get(n, "") for n in _result_nodes(self.exported)]
        return len(made) == 1 and made[0] in self.graph and self.graph.nodes[made[0]]["operation"] in LOSS_NAMES.values()

    def _placeholder(self, node: Any, spec: Any) -> None:
        if spec.kind is InputKind.PARAMETER and spec.target in self._names:
            self._held[node] = self._names[spec.target]
        elif isinstance(node.meta.get("val"), torch.Tensor):
            self._add(node, "input" if spec.kind is InputKind.USER_INPUT else "constant", {})
            self._reveal(node, spec)

    def _reveal(self, node: Any, spec: Any) -> None:
        """A buffer or a captured tensor may be a parameter in disguise; it then moves with it, in a way not followed."""
        tensor = self.exported.constants.get(spec.target, self.exported.state_dict.get(spec.target))
        parameter = self._memory_of_parameters.get(memory_of(tensor))
        if parameter and isinstance(tensor, torch.Tensor):
            self._made[node] = self.graph.add_operation(
                f"{node.name}_memory",
                "shared_memory",
                {"input": node.name},
                {"weight": parameter},
                shape=tuple(tensor.shape),
                dtype=_dtype(tensor),
                why=f"'{spec.target}' shares its memory with the parameter '{parameter}'",
            )

    def _constant(self, node: Any) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            self._add(node, "constant", {})

    def _call(self, node: Any) -> None:
        if node.target is operator.getitem:
            self._getitem(node)
            return
        name, overload, arguments = _arguments(node)
        value = node.meta.get("val")
        if name.endswith("_") and not name.startswith("__"):
            self._read(node, name.rstrip("_"), overload, arguments)
            self._memory.overwrites(node, node.args[0])
            self._disturb(node, [node.args[0]], (node,))
        elif isinstance(value, torch.Tensor):
            self._read(node, name, overload, arguments)
        elif isinstance(value, list | tuple):
            self._made[node] = ""  # its members are named where they are taken out
            nested = [getattr(self.exported.graph_module, a.target) for a in node.args if getattr(a, "op", "") == "get_attr"]
            if any(map(mutates, nested)):
                self._disturb(node, node.args, node.args)

    def _read(self, node: Any, name: str, overload: str, arguments: Mapping[str, Any]) -> None:
        if name in ("select", "unbind"):
            size = node.meta["val"].shape
            index = arguments["index"] % arguments["self"].meta["val"].shape[arguments["dim"]]
            self._taken(node, arguments["self"], arguments["dim"], index, 1, size)
            return
        reading = read(name, overload, arguments)
        if reading is None or any(isinstance(v, list) for v in reading.slots.values()) or not node.meta["val"].is_floating_point():
            self._opaque(node, f"aten.{name}", arguments)
            return
        self._add(node, reading.operation, reading.slots, dict(reading.attributes))
        if name.endswith("dropout") and reading.operation == "identity":
            self._memory.returns_its_argument(node, reading.slots["input"])

    def _opaque(self, node: Any, operation: str, arguments: Mapping[str, Any]) -> None:
        tensors = [n for n in _flat(list(arguments.values())) if isinstance(n, torch.fx.Node)]
        self._add(node, operation, {str(i): n for i, n in enumerate(tensors)}, {})

    def _disturb(self, node: Any, targets: Sequence[Any], causes: Sequence[Any]) -> None:
        """`node` wrote into `targets`: names of the same tensor now mean its new value, what else shares its memory an unknown one."""
        for target in (t for t in targets if isinstance(t, torch.fx.Node)):
            for other in [target, *self._memory.sharing(target, [*self._made, *self._held])]:
                if self._made.get(node) and self._memory.tensor(other) is self._memory.tensor(node):
                    self._made[other] = self._made[node]
                elif any(self._order[user] > self._order[node] for user in other.users):
                    self._overwrite(node, other, causes)

    def _overwrite(self, node: Any, other: Any, causes: Sequence[Any]) -> None:
        sources = dict.fromkeys(n for n in (other, *causes) if isinstance(n, torch.fx.Node) and (n in self._held or self._made.get(n)))
        inputs, parameters = self._slots({str(i): n for i, n in enumerate(sources)}, other)
        value, why = other.meta["val"], f"'{node.name}' writes into the memory of '{other.name}'"
        self._made[other] = self.graph.add_operation(
            f"{node.name}_into_{other.name}", "overwritten", inputs, parameters, shape=tuple(value.shape), dtype=_dtype(value), why=why
        )
        self._held.pop(other, None)

    def _getitem(self, node: Any) -> None:
        source, index = node.args
        if source.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            return
        name, _, arguments = _arguments(source)
        if name in ("chunk", "split", "split_with_sizes", "tensor_split"):
            dim = arguments.get("dim", 0)
            start = sum(v.shape[dim] for v in source.meta["val"][:index])
            self._taken(node, arguments["self"], dim, start, node.meta["val"].shape[dim], node.meta["val"].shape)
        elif name == "unbind":
            self._taken(node, arguments["self"], arguments.get("dim", 0), index, 1, node.meta["val"].shape)
        elif name == "broadcast_tensors":
            self._add(node, "expand", {"input": arguments["tensors"][index]})
        elif index == 0 and (reading := read(name, "", arguments)) is not None:
            self._add(node, reading.operation, reading.slots, dict(reading.attributes))
        else:
            self._opaque(node, f"aten.{name}", arguments)

    def _taken(self, node: Any, source: Any, dim: int, start: int, length: int, shape: Any) -> None:
        whole = source.meta["val"].shape
        if length == whole[dim]:
            self._add(node, "reshape", {"input": source})
            return
        cut = (*whole[: dim % len(whole)], length, *whole[dim % len(whole) + 1 :])
        if tuple(cut) == tuple(shape):
            self._add(node, "slice", {"input": source}, {"dim": dim, "start": start, "length": length})
            return
        inputs, parameters = self._slots({"input": source}, node)
        name = self.graph.add_operation(
            f"{node.name}_slice",
            "slice",
            inputs,
            parameters,
            shape=cut,
            dtype=_dtype(node.meta["val"]),
            dim=dim,
            start=start,
            length=length,
        )
        self._made[node] = self.graph.add_operation(
            node.name, "reshape", {"input": name}, shape=tuple(shape), dtype=_dtype(node.meta["val"])
        )

    def _add(self, node: Any, operation: str, slots: Mapping[str, Any], attributes: dict[str, Any] | None = None) -> None:
        inputs, parameters = self._slots(slots, node)
        value = node.meta["val"]
        if operation in OPERATIONS and not OPERATIONS[operation].accepts((*inputs, *parameters)):
            operation = f"aten.{operation}"
        self._made[node] = self.graph.add_operation(
            node.name,
            operation,
            inputs,
            parameters,
            shape=tuple(value.shape),
            dtype=_dtype(value),
            module=self._module(node),
            **(attributes or {}),
        )

    def _slots(self, slots: Mapping[str, Any], node: Any) -> tuple[dict[str, str], dict[str, str]]:
        inputs: dict[str, str] = {}
        parameters: dict[str, str] = {}
        for slot, source in slots.items():
            if source is None:
                continue
            if source in self._held:
                parameters[slot] = self._held[source]
            elif self._made.get(source):
                inputs[slot] = self._made[source]
            else:
                name = f"{node.name}_{slot}_constant"
                inputs[slot] = self.graph.add_operation(name, "constant", dtype=_dtype(node.meta["val"]))
        return inputs, parameters

    def _module(self, node: Any) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]).removeprefix(self.prefix) if stack else ""


def _arguments(node: Any) -> tuple[str, str, dict[str, Any]]:
    """(name without namespace, overload, arguments by schema name with defaults) of a call."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target)), "", dict(enumerate(node.args)) | dict(node.kwargs)  # type: ignore[return-value]
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return schema.name.split("::")[-1], schema.overload_name or "default", bound | dict(node.kwargs)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
