"""Small helpers around `noetherflow.bridge.evaluation`: a random parameter, and the operations of a graph in order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noetherflow.bridge import evaluation
from noetherflow.symbolic.graph import ArchitectureGraph


def parameter(*shape: int) -> nn.Parameter:
    """A random parameter in double precision."""
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


def steps(graph: ArchitectureGraph) -> list[str]:
    """The operations of a graph in the order of computation, without its ends and what is given."""
    found = [graph.nodes[n]["operation"] for n in graph.topological_order()]
    return [operation for operation in found if operation not in ("input", "output", "constant")]


def evaluate(graph: ArchitectureGraph, model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Every node's value; the parameters are the model's, the inputs fill the graph's inputs in order."""
    return evaluation.evaluate(graph, dict(model.named_parameters()), inputs)
