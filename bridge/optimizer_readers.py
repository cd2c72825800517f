"""How each optimizer of torch.optim is read: its update equations, its numbers at a step, and where it keeps each buffer.

A reader says nothing about laws. Numbers are made as torch makes them, in Python's floats, step by step; where torch keeps a running
product in single precision (NAdam's of momenta), so does the reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from noetherflow.errors import RuleError
from noetherflow.numeric.companions import Companions
from noetherflow.symbolic.forms import Form
from noetherflow.symbolic.rules import sgd_form
from noetherflow.symbolic.rules_adaptive import adadelta_form, adagrad_form, adam_form, nadam_form, rmsprop_form
from noetherflow.symbolic.rules_directed import muon_form

Options = Mapping[str, Any]
Numbers = dict[str, float]


class Reader(Protocol):
    """How one optimizer class is read."""

    def form(self, options: Options) -> Form:
        """The `Form` of a parameter group."""
        ...

    def values(self, options: Options, state: Options | None) -> Numbers:
        """Hyper-parameters by the names of the form, as the next step will use them.

        `state` is what the optimizer keeps of one of the group's parameters, empty before the first step; None: in general.
        """
        ...

    def buffers(self, state: Options) -> dict[str, Tensor]:
        """Buffers by the names of the form's vectors, those that exist."""
        ...

    def given(self, options: Options, parameter: Tensor, state: Options) -> dict[str, Tensor]:
        """Vectors of the coming step that are no functions of single entries."""
        ...


@dataclass(frozen=True)
class SGDReader:
    """torch.optim.SGD."""

    def form(self, options: Options) -> Form:
        """Momentum, Nesterov and maximize decide which equations there are."""
        return sgd_form(momentum=options["momentum"] != 0, nesterov=bool(options["nesterov"]), maximize=bool(options["maximize"]))

    def values(self, options: Options, state: Options | None) -> Numbers:
        """The step that makes the buffer sets b' = h: no dampening."""
        known = {"lr": float(options["lr"]), "weight_decay": float(options["weight_decay"])}
        if options["momentum"] != 0:
            first = state is not None and state.get("momentum_buffer") is None
            known |= {"momentum": float(options["momentum"]), "dampening": 0.0 if first else float(options["dampening"])}
        return known

    def buffers(self, state: Options) -> dict[str, Tensor]:
        """`momentum_buffer`."""
        found = state.get("momentum_buffer")
        return {} if found is None else {"b": found}

    def given(self, options: Options, parameter: Tensor, state: Options) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True)
class TableReader:
    """An optimizer whose state is a table of tensors and a number of steps.

    Attributes
    ----------
    make : callable
        Options -> form.
    numbers : callable
        (options, number of the coming step from 1, state) -> values that are not simply options.
    plain : mapping of str to str
        Name in the form -> the option that it is.
    keys : mapping of str to str
        Vector -> key of the state.
    directions : callable
        (options, parameter, state) -> vectors that are no functions of single entries.
    """

    make: Callable[[Options], Form]
    plain: Mapping[str, str]
    keys: Mapping[str, str]
    numbers: Callable[[Options, float, Options], Numbers] = lambda options, step, state: {}
    directions: Callable[[Options, Tensor, Options], dict[str, Tensor]] = field(default=lambda options, parameter, state: {})

    def form(self, options: Options) -> Form:
        """From the options; complex parameters and the like are torch's to refuse."""
        return self.make(options)

    def values(self, options: Options, state: Options | None) -> Numbers:
        """Options, and what torch makes of them and the number of the step."""
        kept = state or {}
        step = float(kept["step"]) + 1 if "step" in kept else 1.0
        known = {name: float(options[option]) for name, option in self.plain.items()} | self.numbers(options, step, kept)
        return {name: known[name] for name, _ in self.form(options).hyperparameters}

    def buffers(self, state: Options) -> dict[str, Tensor]:
        """Those of the table that exist."""
        return {vector: state[key] for vector, key in self.keys.items() if state.get(key) is not None}

    def given(self, options: Options, parameter: Tensor, state: Options) -> dict[str, Tensor]:
        """Only where the table has some."""
        return self.directions(options, parameter, state)


# --- Adam, AdamW, NAdam


def _adam(options: Options) -> Form:
    decoupled = bool(options.get("decoupled_weight_decay"))
    return adam_form(decoupled=decoupled, amsgrad=bool(options["amsgrad"]), maximize=bool(options["maximize"]))


def _adam_numbers(options: Options, step: float, state: Options) -> Numbers:
    one, two = (float(beta) for beta in options["betas"])
    return {"beta1": one, "beta2": two, "correction1": 1 - one**step, "correction2": 1 - two**step}


def _nadam(options: Options) -> Form:
    return nadam_form(decoupled=bool(options["decoupled_weight_decay"]), maximize=bool(options["maximize"]))


def _nadam_numbers(options: Options, step: float, state: Options) -> Numbers:
    one, two = (float(beta) for beta in options["betas"])
    now, later = (one * (1 - 0.5 * 0.96 ** (t * float(options["momentum_decay"]))) for t in (step, step + 1))
    product = float(state["mu_product"] * now) if "mu_product" in state else float(torch.ones(()) * now)
    weights = {"gradient_weight": (1 - now) / (1 - product), "momentum_weight": later / (1 - product * later)}
    return {"beta1": one, "beta2": two, "correction2": 1 - two**step} | weights


# --- RMSprop, Adagrad, Adadelta


def _rmsprop(options: Options) -> Form:
    return rmsprop_form(centered=bool(options["centered"]), momentum=options["momentum"] > 0, maximize=bool(options["maximize"]))


def _adagrad_numbers(options: Options, step: float, state: Options) -> Numbers:
    return {"lr": float(options["lr"]) / (1 + (step - 1) * float(options["lr_decay"]))}


# --- Muon


def _muon_direction(options: Options, parameter: Tensor, state: Options) -> dict[str, Tensor]:
    """The orthogonal factor as torch approximates it, in half precision, times the factor of the step size that the shape makes."""
    if parameter.grad is None:
        return {}
    gradient, momentum = parameter.grad.detach(), 1 - options["momentum"]
    before = state.get("momentum_buffer")
    average = (torch.zeros_like(gradient) if before is None else before.detach()).lerp(gradient, momentum)
    mixed = gradient.lerp(average, options["momentum"]) if options["nesterov"] else average
    return {"d": orthogonal(mixed, options).double() * shape_factor(options["adjust_lr_fn"], tuple(parameter.shape))}


def orthogonal(matrix: Tensor, options: Options) -> Tensor:
    """Newton-Schulz iterations in half precision, operation by operation those of torch.optim.Muon, so that results are equal.

    Parameters
    ----------
    matrix : Tensor, shape (m, n)
    options : mapping
        ``ns_coefficients``, ``ns_steps``, ``eps``.
    """
    a, b, c = options["ns_coefficients"]
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16().T if tall else matrix.bfloat16()
    x = x / x.norm().clamp(min=options["eps"])
    for _ in range(options["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def shape_factor(kind: str | None, shape: tuple[int, ...]) -> float:
    """What torch.optim.Muon multiplies the step size of a matrix by."""
    rows, columns = shape[:2]
    if kind is None or kind == "original":
        return math.sqrt(max(1, rows / columns))
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    raise RuleError(f"torch.optim.Muon with adjust_lr_fn={kind!r} is not known. Use 'original' or 'match_rms_adamw'.", kind=kind)


@dataclass(frozen=True)
class CompanionsReader:
    """Several optimizers as one: each group is read as the optimizer that moves it."""

    @property
    def _readers(self) -> dict[str, Reader]:
        return {kind.__name__: reader for kind, reader in READERS.items() if kind is not Companions}

    def _of(self, options: Options) -> Reader:
        found = self._readers.get(options["optimizer"])
        if found is None:
            raise RuleError(f"No rule is known for the companion {options['optimizer']}. Known: {sorted(self._readers)}.")
        return found

    def form(self, options: Options) -> Form:
        """Of the group's optimizer."""
        return self._of(options).form(options)

    def values(self, options: Options, state: Options | None) -> Numbers:
        """Of the group's optimizer."""
        return self._of(options).values(options, state)

    def buffers(self, state: Options) -> dict[str, Tensor]:
        """By every name that an optimizer has for a key of the state; the form that is followed chooses among them."""
        return {name: tensor for reader in self._readers.values() for name, tensor in reader.buffers(state).items()}

    def given(self, options: Options, parameter: Tensor, state: Options) -> dict[str, Tensor]:
        """Of the group's optimizer."""
        return self._of(options).given(options, parameter, state)


COMMON: Final = {"lr": "lr", "weight_decay": "weight_decay"}
ADAM: Final = TableReader(_adam, COMMON | {"eps": "eps"}, {"m": "exp_avg", "v": "exp_avg_sq", "w": "max_exp_avg_sq"}, numbers=_adam_numbers)
READERS: Final[dict[type, Reader]] = {
    torch.optim.SGD: SGDReader(),
    torch.optim.Adam: ADAM,
    torch.optim.AdamW: ADAM,
    torch.optim.NAdam: TableReader(_nadam, COMMON | {"eps": "eps"}, {"m": "exp_avg", "v": "exp_avg_sq"}, numbers=_nadam_numbers),
    torch.optim.RMSprop: TableReader(
        _rmsprop,
        COMMON | {"alpha": "alpha", "eps": "eps", "momentum": "momentum"},
        {"v": "square_avg", "m": "grad_avg", "b": "momentum_buffer"},
    ),
    torch.optim.Adagrad: TableReader(
        lambda options: adagrad_form(maximize=bool(options["maximize"])), COMMON | {"eps": "eps"}, {"v": "sum"}, numbers=_adagrad_numbers
    ),
    torch.optim.Adadelta: TableReader(
        lambda options: adadelta_form(maximize=bool(options["maximize"])),
        COMMON | {"rho": "rho", "eps": "eps"},
        {"v": "square_avg", "a": "acc_delta"},
    ),
    torch.optim.Muon: TableReader(
        lambda options: muon_form(nesterov=bool(options["nesterov"])),
        COMMON | {"momentum": "momentum"},
        {"m": "momentum_buffer"},
        directions=_muon_direction,
    ),
    Companions: CompanionsReader(),
}
