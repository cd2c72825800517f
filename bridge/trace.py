"""From a torch module to an architecture graph, through `torch.export` in training form.

1. export   the module, or the module with its loss behind it
2. build    name every operation, follow what is done in place (`building`)
3. end      in the loss, or in all that a loss may see
4. gather   chains of operations that are one (`chains`), fold what is only data, drop what nothing reads (`folding`)

Works on any module that exports, also on the meta device, where a model of any size is traced without its weights. Shared parameters keep
one name (the others are aliases), frozen ones are marked, and what has no name in the vocabulary is kept under its own and is opaque.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import is_dataclass
from itertools import product
from typing import Any, Final

import torch
from torch import nn

from noetherflow.bridge.building import Builder, flat
from noetherflow.bridge.chains import gather
from noetherflow.bridge.constant_values import keep
from noetherflow.bridge.folding import fold, prune
from noetherflow.errors import TraceError
from noetherflow.symbolic.graph import ArchitectureGraph

Loss = str | nn.Module | Callable[..., torch.Tensor] | None

LOSS_NAMES: Final = {"cross_entropy": "cross_entropy", "mse": "mean_square"}
RECOGNISED: Final[dict[Any, str]] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "mean_square",
    nn.functional.cross_entropy: "cross_entropy",
    nn.functional.mse_loss: "mean_square",
}
PREFIX: Final = "model."


def trace(model: nn.Module, *example_inputs: Any, loss: Loss = None, kwargs: Mapping[str, Any] | None = None) -> ArchitectureGraph:
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
    kwargs : mapping, optional
        Keyword inputs of the forward pass.

    Raises
    ------
    TraceError
        If the module does not export, or the loss cannot be called on its output.

    Notes
    -----
    Of an output that is a dataclass with names (transformers' ``ModelOutput``) the graph ends in its ``loss`` if it has one (labels were
    given) and `loss` is None, else in its ``logits``, else in its floating-point members; a cache of keys and values is no output.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(4, 3), loss="mse")
    >>> [graph.nodes[n]["operation"] for n in graph.topological_order()]
    ['input', 'linear', 'relu', 'linear', 'mean_square']
    """
    named, options = _named_loss(loss), dict(kwargs or {})
    wrapped, inputs = (model, example_inputs) if loss is None or named else _with_loss(model, example_inputs, options, loss)
    try:
        exported = _exported(wrapped, inputs, options)
    except Exception as err:  # torch.export raises many types
        raise TraceError(
            f"torch.export could not trace {type(model).__name__} on inputs {_described(inputs, options)}: {err}. "
            "Check the example inputs; data-dependent control flow must be removed or written with torch.cond, and a cache of keys and "
            "values must not be returned (transformers: model.config.use_cache = False).",
            model=type(model).__name__,
        ) from err
    builder = Builder(exported, model, wrapped, prefix=PREFIX if wrapped is not model else "")
    builder.build()
    end = _end(builder, _results(exported, labelled=loss is None), loss, named)
    graph = builder.graph
    prune(graph, [end])
    gather(graph, builder.buffers)
    fold(graph)
    prune(graph, [end])
    keep(graph, builder.constants)
    return graph


def _exported(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        # torch's recurrent layers keep a second list of their weights, which torch.export replaces for the time it traces
        warnings.filterwarnings("ignore", message=r".*_flat_weights.* assigned during export")
        return torch.export.export(module, tuple(inputs), options, strict=False)


def _end(builder: Builder, results: dict[str, Any], loss: Loss, named: str | None) -> str:
    """The last node: a named loss on the first output, a loss that is already there, or an output node on all of them."""
    known = [n for n in results.values() if builder.knows(n)]
    if not known:
        raise TraceError("The model's output does not depend on any traced tensor.")
    if named is not None:
        first = _main(results) or known[0]
        by_rank = isinstance(loss, str) and named == "cross_entropy"
        axis = {"axis": 1 if first.meta["val"].dim() > 3 else -1} if by_rank else {}
        return builder.end("loss", named, {"input": first}, **axis)
    last = builder.holder(known[0])
    is_loss = bool(last) and builder.graph.nodes[last]["operation"] in LOSS_NAMES.values()
    if is_loss and len(known) == 1 and (loss is not None or "loss" in results):
        return last
    return builder.end("output", "output", {str(i): n for i, n in enumerate(known)})


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
    """A model with its loss behind it; the last inputs are the loss's targets, and it may be given the whole output or its tensor."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any], targets: int, *, whole: bool) -> None:
        super().__init__()
        self.model, self.loss, self.targets, self.whole = model, loss, targets, whole

    def forward(self, *inputs: Any, **options: Any) -> Any:
        split = len(inputs) - self.targets
        output = self.model(*inputs[:split], **options)
        return self.loss(output if self.whole else first_tensor(output), *inputs[split:])


def _with_loss(model: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], loss: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model with its loss behind it; the target's form is found by trying class numbers, then a tensor like the output, then none."""
    probe = _exported(model, inputs, options)
    main, spec = _main(_results(probe)), probe.call_spec.out_spec
    output = first_tensor(main.meta["val"] if main is not None else [])
    whole = (True,) if spec is None or spec.is_leaf() else (True, False)  # an output that is a tensor has no other form
    failures = []
    for given, target in product(whole, _targets(output)):
        wrapped = _WithLoss(model, loss, len(target), whole=given)
        try:
            _exported(wrapped, (*inputs, *target), options)
        except Exception as err:  # whatever the user's loss raises on a target of the wrong form
            failures.append(f"{[tuple(t.shape) for t in target]}: {err}")
        else:
            return wrapped, (*inputs, *target)
    raise TraceError(f"The loss could not be called on the model's output of shape {tuple(output.shape)}; tried targets {failures}.")


def _targets(output: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """What a loss may want beside the output: classes (axis 1, or the last), a tensor like it, nothing."""
    shapes = dict.fromkeys([(*output.shape[:1], *output.shape[2:]), tuple(output.shape[:-1])])
    classes = [(torch.zeros(shape, dtype=torch.long, device=output.device),) for shape in shapes]
    return [*classes, (torch.zeros(tuple(output.shape), dtype=output.dtype, device=output.device),), ()]


def first_tensor(values: Any) -> torch.Tensor:
    """The first floating-point tensor in nested outputs; the logits, where one member is named so."""
    if isinstance(values, torch.Tensor) and values.is_floating_point():
        return values
    named = values if isinstance(values, Mapping) else {}
    members = [named["logits"]] if "logits" in named else list(named.values()) or values
    for member in members if isinstance(members, list | tuple) else []:
        try:
            return first_tensor(member)
        except TraceError:
            continue
    raise TraceError("The model's output holds no floating-point tensor to put a loss on.")


def _results(exported: torch.export.ExportedProgram, *, labelled: bool = False) -> dict[str, Any]:
    """The export nodes of what is returned and a loss may see, by name where the output has names, else by number."""
    output = next(n for n in reversed(exported.graph.nodes) if n.op == "output")
    spec = exported.call_spec.out_spec
    members = {name: n for name, n in _members(flat(output.args), spec) if isinstance(n, torch.fx.Node)}
    if spec is None or not is_dataclass(spec.type):
        return members
    members = {name: n for name, n in members.items() if "." not in name and _is_float(n)}
    chosen = next((name for name in ("loss", "logits")[not labelled :] if name in members), None)
    return {chosen: members[chosen]} if chosen else members


def _members(leaves: list[Any], spec: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of an output with their names; those of a member that is no tensor have a dot in theirs."""
    if spec is None or not isinstance(spec.context, list) or spec.num_leaves != len(leaves):
        yield from ((str(i), leaf) for i, leaf in enumerate(leaves))
        return
    for name, child in zip(spec.context, spec.children(), strict=True):
        inside, leaves = leaves[: child.num_leaves], leaves[child.num_leaves :]
        yield from ((str(name) if child.is_leaf() else f"{name}.{i}", leaf) for i, leaf in enumerate(inside))


def _is_float(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and bool(node.meta["val"].is_floating_point())


def _main(results: Mapping[str, Any]) -> Any:
    """The export node that a loss is put on: the logits, or the first of floating-point numbers."""
    return results.get("logits") or next(filter(_is_float, results.values()), None)


def _described(inputs: tuple[Any, ...], options: Mapping[str, Any]) -> list[Any]:
    return [tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in (*inputs, *options.values())]
