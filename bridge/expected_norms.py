"""What a module's forward pass should be heard to normalise, as the graph has it, and whether that is what was heard.

Calls are told apart by their order alone, so all of them have to agree: their number, what each of them does to what shape, and whose gain
it applies. Where they do not, it cannot be told which is which, and nothing is said about any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from noetherflow.bridge.norm_functions import Form, Heard, normalised_sizes
from noetherflow.bridge.norm_modules import Normalization
from noetherflow.bridge.origins import Origin
from noetherflow.symbolic.graph import ArchitectureGraph

ADVICE = "Write the normalisation as a module of its own (torch.nn.LayerNorm, RMSNorm, ...)"


@dataclass(frozen=True, slots=True)
class Expected:
    """One normalisation that a module makes by a function.

    Parameters
    ----------
    norm : Normalization
    form : Form
    weight : Tensor or None
        The parameter that is the function's own gain.
    weighted : bool
        Whether the function has a gain, a parameter or not.
    written : torch.dtype or None
        Of a written-out chain: the coarsest type that it is computed in.
    """

    norm: Normalization
    form: Form
    weight: Tensor | None
    weighted: bool
    written: torch.dtype | None

    @classmethod
    def of(
        cls, graph: ArchitectureGraph, norm: Normalization, origin: Origin, parameters: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Expected:
        """That of a node, computed in some type."""
        data, name = graph.nodes[norm.node], origin.parameters.get("weight")
        form = Form(norm.layout, norm.eps, normalised_sizes(norm.layout, data["shape"]), data["attributes"].get("training", True))
        weighted = name is not None or "weight" in graph.inputs_of(norm.node)
        return cls(norm, form, None if name is None else parameters[name], weighted, dtype if origin.written else None)


def written_forms(calls: Sequence[Sequence[Expected]]) -> dict[Form, torch.dtype]:
    """The forms that chains of a module may have."""
    return {wanted.form: wanted.written for wanted in chain.from_iterable(calls) if wanted.written is not None}


def difference(expected: Sequence[Expected], heard: Sequence[Heard]) -> str:
    """Why what was heard is not what was traced, or ''."""
    if len(expected) != len(heard):
        return (
            f"its module was traced with {_count(len(expected))} in a call, and {len(heard)} could be recognised in the run, so it cannot "
            f"be told which of them it is. {ADVICE}"
        )
    for number, (wanted, found) in enumerate(zip(expected, heard, strict=True), 1):
        if wanted.form not in found.inputs:
            shown = " or ".join(map(str, found.inputs))
            return f"number {number} of its module was traced as {wanted.form}, and was {shown} in the run. {ADVICE}"
        another = found.weight is not wanted.weight if wanted.weight is not None else (found.weight is not None) != wanted.weighted
        if another:
            return f"number {number} of its module has another gain in the run than the one that was traced. {ADVICE}"
    return ""


def _count(number: int) -> str:
    return f"{number} normalisation{'s' if number != 1 else ''} called as {'functions' if number != 1 else 'a function'}"
