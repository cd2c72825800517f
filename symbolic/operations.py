"""The vocabulary of operations: standard names and the slots that each one reads.

Names are the field's own. What a symmetry may do at an operation is said elsewhere (`noetherflow.symbolic.gauge_table`); a test holds
the two tables against each other. An operation that is not listed here can be in a graph; nothing passes it, and results name it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Operation:
    """Slots of an operation: those it must have, those it may have, and whether it takes any number of numbered ones."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    variadic: bool = False

    def accepts(self, slots: Iterable[str]) -> bool:
        """Whether these slots fit."""
        given = set(slots)
        if self.variadic:
            return bool(given) and all(slot.isdigit() for slot in given)
        return set(self.required) <= given <= {*self.required, *self.optional}

    def describe(self) -> str:
        """The slots in words, for error messages."""
        if self.variadic:
            return "numbered slots '0', '1', ..."
        return f"{list(self.required)}" + (f" and optionally {list(self.optional)}" if self.optional else "")


_unary = Operation(("input",))
_binary = Operation(("input", "other"))
_affine = Operation(("input", "weight"), ("bias",))
_normed = Operation(("input",), ("weight", "bias"))
_recurrent = Operation(("input", "weight_ih", "weight_hh"), ("bias_ih", "bias_hh", "hidden", "memory"))
_loss = Operation(("input",), ("target", "weight"))

OPERATIONS: Final[dict[str, Operation]] = {
    # ends
    "input": Operation(()),
    "constant": Operation(()),
    "parameter": Operation(("weight",)),
    "output": Operation((), variadic=True),
    # multilinear in activations and parameters
    "linear": _affine,
    "convolution": _affine,
    "transposed_convolution": _affine,
    "add": _binary,
    "subtract": _binary,
    "multiply": _binary,
    "divide": _binary,
    "matmul": _binary,
    "einsum": Operation((), variadic=True),
    "negate": _unary,
    "scale": _unary,
    "sum": _unary,
    "mean": _unary,
    "embedding": Operation(("weight",), ("input",)),
    "index_select": Operation(("input",), ("index",)),
    "gather": Operation(("input",), ("index",)),
    # positively homogeneous
    "relu": _unary,
    "leaky_relu": _unary,
    "prelu": Operation(("input", "weight")),
    "absolute": _unary,
    "power": _unary,
    "dropout": _unary,
    "masked": _unary,
    "maximum": _binary,
    "minimum": _binary,
    "select": _binary,
    # bounded or curved
    "relu6": _unary,
    "tanh": _unary,
    "gelu": _unary,
    "silu": _unary,
    "sigmoid": _unary,
    "softplus": _unary,
    "exponential": _unary,
    "logarithm": _unary,
    "sine": _unary,
    "cosine": _unary,
    "error_function": _unary,
    "hard_sigmoid": _unary,
    "hard_swish": _unary,
    "elu": _unary,
    "mish": _unary,
    "clamp": _unary,
    # positions, and windows over them
    "max_pool": _unary,
    "average_pool": _unary,
    "adaptive_average_pool": _unary,
    "adaptive_max_pool": _unary,
    "rearrange": _unary,
    # normalisation
    "batch_norm": _normed,
    "layer_norm": _normed,
    "rms_norm": _normed,
    "group_norm": _normed,
    "instance_norm": _normed,
    "unit_norm": _unary,
    "weight_norm": Operation(("direction", "magnitude")),
    "softmax": _unary,
    "log_softmax": _unary,
    # attention and recurrence
    "attention": Operation(("query", "key", "value"), ("mask",)),
    "rotary": Operation(("input",), ("cosine", "sine")),
    "lstm_layer": _recurrent,
    "gru_layer": _recurrent,
    "rnn_layer": _recurrent,
    # shapes
    "identity": _unary,
    "reshape": _unary,
    "permute": _unary,
    "expand": _unary,
    "slice": _unary,
    "concatenate": Operation((), variadic=True),
    # losses
    "cross_entropy": _loss,
    "mean_square": _loss,
}
