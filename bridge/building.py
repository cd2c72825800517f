"""From an exported program to an architecture graph: one walk over its nodes.

In-place operations are followed, blocks that only set a context (autocast, no_grad) are entered, and what no table reads is kept under its
own name and is opaque.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Final

import torch
from torch import nn
from torch.export.graph_signature import InputKind

from noetherflow.bridge import aten, aten_blocks, aten_shapes
from noetherflow.bridge.aliasing import Memory, memory_of, mutates
from noetherflow.bridge.aten_choices import choosing
from noetherflow.bridge.constant_values import ConstantValues, described
from noetherflow.bridge.origins import note_call_of, note_calls
from noetherflow.bridge.reading import Arguments, Readers, Reading, shape_of
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.operations import OPERATIONS

READERS: Final = Readers(aten.READERS | aten_shapes.READERS | aten_blocks.READERS)
# What may also be done to numbers that are no floats: they only move.
MOVES: Final = frozenset({"identity", "reshape", "permute", "expand", "slice", "concatenate", "constant"})
CONTEXTS: Final = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}  # name -> place of the nested graph among the arguments

# Readings within readings that only take a part of a constant, or see it in another shape: what they are is known too.
CUTS: Final[dict[str, Callable[[torch.Tensor, Mapping[str, Any], tuple[int, ...]], torch.Tensor]]] = {
    "slice": lambda x, a, shape: x.narrow(a["dim"], a["start"], a["length"]),
    "reshape": lambda x, a, shape: x.reshape(shape),
    "expand": lambda x, a, shape: x.expand(shape),
}


class Builder:
    """Fills a graph from an exported program.

    Parameters
    ----------
    exported : torch.export.ExportedProgram
    model : nn.Module
        Whose parameter names are used.
    wrapped : nn.Module
        What was exported: the model, or the model inside a loss.
    prefix : str
        Of the model's name inside `wrapped`.
    """

    def __init__(self, exported: torch.export.ExportedProgram, model: nn.Module, wrapped: nn.Module, prefix: str) -> None:
        self.graph = ArchitectureGraph()
        self.buffers: dict[str, torch.Tensor] = {}  # constant node -> the tensor it stands for, where that is known
        self.constants: dict[str, torch.Tensor] = {}  # graph node -> what it is, where no input and no parameter changes it
        self._constants = ConstantValues(list(exported.graph.nodes))
        self._exported, self._prefix = exported, prefix
        self._made: dict[Any, str] = {}  # export node -> graph node that holds its present value
        self._held: dict[Any, str] = {}  # export placeholder -> parameter name
        self._entered: dict[Any, Sequence[Any]] = {}  # nested block -> (graph node, parameter) of each of its results
        self._moving: set[str] = set()  # graph nodes that depend on a parameter
        self._inner: dict[int, str] = {}  # of the reading that is being entered: the nodes of the readings within it, by identity
        self._memory = Memory()
        self._order = {node: i for i, node in enumerate(exported.graph.nodes)}
        self._reserved = {node.name for node in exported.graph.nodes}
        by_identity: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            kept = by_identity.setdefault(id(parameter), name)
            self.graph.graph.setdefault("identities", {})[id(parameter)] = kept
            if kept == name:
                self.graph.add_parameter(name, tuple(parameter.shape), dtype_of(parameter), parameter.requires_grad)
            else:
                self.graph.aliases[name] = kept
        self._names = {name: by_identity[id(p)] for name, p in wrapped.named_parameters(remove_duplicate=False) if id(p) in by_identity}
        self._memory_of_parameters = {memory_of(p): by_identity[id(p)] for p in model.parameters()}

    def build(self) -> None:
        """Add every node."""
        kinds = {spec.arg.name: spec for spec in self._exported.graph_signature.input_specs if hasattr(spec.arg, "name")}
        for node in self._exported.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, kinds[node.name])
            else:
                self._visit(node)

    def knows(self, node: Any) -> bool:
        """Whether an export node has a value in the graph."""
        return node in self._made or node in self._held

    def holder(self, node: Any) -> str:
        """The graph node that holds an export node's value; empty for a parameter."""
        return self._made.get(node, "")

    def end(self, name: str, operation: str, results: Mapping[str, Any], **attributes: Any) -> str:
        """Add a last node that reads the given export nodes."""
        return self._enter(Reading(operation, results, attributes), name, next(iter(results.values())), shape=(), module="")

    def _visit(self, node: Any) -> None:
        note_calls(self.graph, self._stack(node))
        self._constants.run(node)
        if node.op == "call_function":
            self._call(node)
        elif node.op == "get_attr" and isinstance(node.meta.get("val"), torch.Tensor):
            self._constants.give(node, getattr(node.graph.owning_module, node.target, None))
            self._add(node, Reading("constant", {}))

    def _placeholder(self, node: Any, spec: Any) -> None:
        if spec.kind is InputKind.PARAMETER and spec.target in self._names:
            self._held[node] = self._names[spec.target]
        elif isinstance(node.meta.get("val"), torch.Tensor):
            self._add(node, Reading("input" if spec.kind is InputKind.USER_INPUT else "constant", {}))
            self._reveal(node, spec)

    def _reveal(self, node: Any, spec: Any) -> None:
        """A buffer or a captured tensor may be a parameter in disguise; it then moves with it, in a way not followed."""
        tensor = self._exported.constants.get(spec.target, self._exported.state_dict.get(spec.target))
        parameter = self._memory_of_parameters.get(memory_of(tensor))
        if not isinstance(tensor, torch.Tensor):
            return
        if parameter is None:
            self.buffers[self._made[node]] = tensor
            self._constants.give(node, tensor)
            self._note(node)
            return
        why = f"'{spec.target}' shares its memory with the parameter '{parameter}'"
        inputs, name = {"input": self._made[node]}, f"{node.name}_memory"
        self._made[node] = self._node(name, "shared_memory", inputs, {"weight": parameter}, tuple(tensor.shape), dtype_of(tensor), why=why)

    # --- calls

    def _call(self, node: Any) -> None:
        if node.target is operator.getitem:
            self._getitem(node)
            return
        value = node.meta.get("val")
        a = _arguments(node)
        if a.name.endswith("_") and not a.name.startswith("__"):
            self._read(node, Arguments(a.name.rstrip("_"), a.overload, a.values, value))
            self._memory.overwrites(node, node.args[0])
            self._disturb(node, [node.args[0]], (node,))
        elif isinstance(value, torch.Tensor):
            self._read(node, a)
        elif isinstance(value, list | tuple):
            self._made[node] = ""  # its members are named where they are taken out
            nested = [member for member in map(_nested, node.args) if member is not None]
            if any(map(mutates, nested)):
                self._disturb(node, node.args, node.args)
            else:
                self._open(node, a.name)
        elif value is not None:
            self._opaque(node, a)  # a number taken out of a tensor

    def _getitem(self, node: Any) -> None:
        source, index = node.args
        if source.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            return
        if source in self._entered:
            made, held = self._entered[source][index]
            (self._held if held else self._made)[node] = held or made
            return
        a = _arguments(source)
        zeros = frozenset(n for n in source.all_input_nodes if self._constants.is_zero(n))
        self._read(node, Arguments(a.name, a.overload, a.values, a.output, index, zeros))

    def _read(self, node: Any, a: Arguments) -> None:
        reading = READERS.read(a)
        while reading is not None and any(map(self._moves, reading.data)):
            reading = reading.otherwise
        if reading is None or not self._fits(node, reading):
            self._opaque(node, a)
            return
        self._add(node, reading)
        if a.name.endswith("dropout") and reading.operation == "identity":
            self._memory.returns_its_argument(node, reading.slots["input"])

    def _fits(self, node: Any, reading: Reading) -> bool:
        """Whether a reading is of floating-point numbers, or of others that are only moved."""
        if any(isinstance(value, list) for value in reading.slots.values()):
            return False
        if node.meta["val"].is_floating_point():
            return True
        sources = [value for value in reading.slots.values() if isinstance(value, torch.fx.Node)]
        return reading.operation in MOVES and not any(source.meta["val"].is_floating_point() for source in sources)

    def _moves(self, node: Any) -> bool:
        return node in self._held or self._made.get(node) in self._moving

    def _opaque(self, node: Any, a: Arguments) -> None:
        tensors = [n for n in flat(list(a.values.values())) if isinstance(n, torch.fx.Node) and n.op != "get_attr"]
        self._add(node, Reading(f"aten.{a.name}", {str(i): n for i, n in enumerate(tensors)}, choosing(a)))

    # --- nested blocks

    def _open(self, node: Any, name: str) -> None:
        """Enter a block that only sets a context; one without gradients only where no parameter comes in."""
        block = _nested(node.args[CONTEXTS[name]]) if name in CONTEXTS else None
        operands = node.args[CONTEXTS[name] + 1 :] if block is not None else ()
        without_gradients = name == "wrap_with_set_grad_enabled" and not node.args[0]
        if block is None or (without_gradients and any(map(self._moves, operands))):
            return
        inner = list(block.graph.nodes)
        places = [n for n in inner if n.op == "placeholder"]
        results = next(n for n in inner if n.op == "output").args[0]
        for place, operand in zip(places, operands, strict=True):
            where = self._held if operand in self._held else self._made
            where[place] = where.get(operand, "")
            self._constants.same(place, operand)
        for n in inner:
            if n.op not in ("placeholder", "output"):
                self._visit(n)
        self._entered[node] = [(self._made.get(n, ""), self._held.get(n, "")) for n in results]
        self._constants.results(node, results)
        for n in inner:
            self._made.pop(n, None)
            self._held.pop(n, None)

    # --- in place

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
        why = f"'{node.name}' writes into the memory of '{other.name}'"
        reading = Reading("overwritten", {str(i): n for i, n in enumerate(sources)}, {"why": why})
        self._made[other] = self._enter(reading, f"{node.name}_into_{other.name}", other, module="")
        self._note(other)
        self._held.pop(other, None)

    # --- nodes

    def _add(self, node: Any, reading: Reading) -> None:
        name = node.name if node in self._order else self._fresh(node.name)
        self._inner.clear()
        self._made[node] = self._enter(self._masking(reading), name, node)
        self._note(node)

    def _note(self, node: Any) -> None:
        value = self._constants.value(node)
        if value is not None:
            self.constants[self._made[node]] = value

    def _masking(self, reading: Reading) -> Reading:
        """A reading with the mask that it applies where that is a small constant, else with the mask's shape."""
        node, hiding = reading.mask
        mask = self._constants.value(node)
        if not isinstance(node, torch.fx.Node):
            return reading
        hidden = described(mask if hiding else ~mask) if mask is not None else {}
        known: dict[str, Any] = {"mask": hidden} if hidden else {"mask_shape": list(shape_of(node))}
        return replace(reading, attributes={**reading.attributes, **known})

    def _enter(self, reading: Reading, name: str, node: Any, *, shape: tuple[int, ...] | None = None, module: str | None = None) -> str:
        """Add the node of a reading, after those of the readings within it, whose names are new ones."""
        value = node.meta["val"]
        inputs: dict[str, str] = {}
        parameters: dict[str, str] = {}
        for slot, source in reading.slots.items():
            if isinstance(source, Reading):
                if id(source) not in self._inner:
                    self._inner[id(source)] = self._enter(source, "", node, shape=source.shape)
                inputs[slot] = self._inner[id(source)]
            elif isinstance(source, torch.fx.Node) and source in self._held:
                parameters[slot] = self._held[source]
            elif isinstance(source, torch.fx.Node) and self._made.get(source):
                inputs[slot] = self._made[source]
            elif source is not None:
                known: dict[str, Any] = {"value": source} if isinstance(source, int | float) else {}
                constant = self._fresh(f"{name or node.name}_{slot}_constant")
                inputs[slot] = self._node(constant, "constant", {}, {}, (), dtype_of(value), **known)
        operation = reading.operation
        if operation in OPERATIONS and not OPERATIONS[operation].accepts((*inputs, *parameters)):
            operation = f"aten.{operation}"
        size = shape if shape is not None else tuple(getattr(value, "shape", ()))
        where = self._module(node) if module is None else module
        name = name or self._fresh(f"{node.name}_{operation}")
        if shape is not None and operation in CUTS and inputs.get("input") in self.constants:
            self.constants[name] = CUTS[operation](self.constants[inputs["input"]], reading.attributes, size)
        if module is None:
            note_call_of(self.graph, name, self._stack(node))
        return self._node(name, operation, inputs, parameters, size, dtype_of(value), where, **reading.attributes)

    def _node(
        self,
        name: str,
        operation: str,
        inputs: Mapping[str, str],
        parameters: Mapping[str, str],
        shape: tuple[int, ...],
        dtype: str,
        module: str = "",
        **attributes: Any,
    ) -> str:
        self.graph.add_operation(name, operation, inputs, parameters, shape=shape, dtype=dtype, module=module, **attributes)
        if parameters or not self._moving.isdisjoint(inputs.values()):
            self._moving.add(name)
        return name

    def _fresh(self, name: str) -> str:
        """A name that no export node and no graph node has."""
        names = (name if not i else f"{name}_{i}" for i in count())
        return next(n for n in names if n not in self._reserved and n not in self.graph)

    def _module(self, node: Any) -> str:
        return next(reversed(self._stack(node).values()), "")

    def _stack(self, node: Any) -> dict[str, str]:
        """The calls of modules that a node was made in, outermost first, with the modules' paths; the loss around the model is none."""
        stack = {key: str(path) for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items()}
        if not self._prefix:
            return stack
        inside = {key: f"{path}." for key, path in stack.items() if f"{path}.".startswith(self._prefix)}
        return {key: path.removeprefix(self._prefix).removesuffix(".") for key, path in inside.items()}


def flat(value: Any) -> list[Any]:
    """The leaves of nested lists."""
    if isinstance(value, list | tuple):
        return [leaf for member in value for leaf in flat(member)]
    return [value]


def dtype_of(value: Any) -> str:
    """The name of an element type, without torch's prefix; that of a number taken out of a tensor is its Python type."""
    return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else type(value).__name__


def _nested(argument: Any) -> Any:
    """The nested graph that an argument names, or None."""
    if getattr(argument, "op", "") != "get_attr":
        return None
    found = getattr(argument.graph.owning_module, argument.target, None)
    return found if isinstance(found, torch.fx.GraphModule) else None


def _arguments(node: Any) -> Arguments:
    """The arguments of a call by schema name, with defaults; its name is without namespace."""
    schema, output = getattr(node.target, "_schema", None), node.meta.get("val")
    if schema is None:
        name = str(getattr(node.target, "__name__", node.target))
        return Arguments(name, "", {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs), output)
    bound = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    bound |= {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)}
    return Arguments(schema.name.split("::")[-1], schema.overload_name or "default", bound | dict(node.kwargs), output)
