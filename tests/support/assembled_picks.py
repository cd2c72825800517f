"""Steps of random networks in which indices choose: rows of tables, weights of experts, positions.

Some steps choose by indices that other steps choose by too, as they are, viewed, repeated, or turned about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from support.assembled import Assembled, DoesNotFit, Run, Step, makes, read
from torch import Tensor
from torch.nn import functional as F

PICKING: Final = ("picked", "routed")
ROWS: Final = 3


def chosen(network: Assembled, shape: tuple[int, ...], rows: int, number: int) -> str:
    """The name of a buffer of indices: one for every shape and number."""
    name = f"indices_{'_'.join(map(str, shape))}_below_{rows}_{number}"
    if not hasattr(network, name):
        generator = torch.Generator().manual_seed(len(name) + number)
        network.register_buffer(name, torch.randint(0, rows, shape, generator=generator))
    return name


# One of indices as they are, indices that are others for some steps, and what is chosen by the values themselves.
WAYS: Final[tuple[Callable[[Tensor, Tensor], Tensor], ...]] = (
    lambda i, x: i,
    lambda i, x: i.clone(),
    lambda i, x: i.reshape(-1).reshape(i.shape),
    lambda i, x: i.flip(-1),
    lambda i, x: (ROWS - 1) - i,
    lambda i, x: (x @ torch.ones(x.shape[-1], ROWS).cumsum(-1).sin()).argmax(-1),
)


def _way(step: Step) -> Callable[[Tensor, Tensor], Tensor]:
    return WAYS[step.b % len(WAYS) if step.c % 3 == 2 else 0]


@makes("picked")
def _picked(network: Assembled, values: list[Tensor], step: Step) -> Run:
    """A value and the rows of a table, chosen for every position."""
    place, x = read(values, step)
    if x.dim() < 2:
        raise DoesNotFit
    width, way = x.shape[-1], _way(step)
    name, number = chosen(network, tuple(x.shape[:-1]), ROWS, step.c // 3 % 2), network.weight(ROWS, width)
    functions: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
        lambda v, w, i: v * w[i],
        lambda v, w, i: v + w[i],
        lambda v, w, i: (v.reshape(-1, width) * w.index_select(0, i.reshape(-1))).reshape(v.shape),
        lambda v, w, i: v * F.embedding(i, w),
        lambda v, w, i: v.relu() * w.t()[:, i].movedim(0, -1),
        lambda v, w, i: v.reshape(-1, width) * w.gather(0, i.reshape(-1, 1).expand(-1, width)),
        lambda v, w, i: torch.cat([v * w[i], v + w[i]], -1),
        lambda v, w, i: torch.einsum("...d,...d->...", v, w[i]).unsqueeze(-1),
        lambda v, w, i: v * w[i].mean(-1, keepdim=True),
        lambda v, w, i: v * (w[i] - w[i.flip(0)]),
    )
    function = functions[step.a % len(functions)]
    return lambda values: function(values[place], network.weights[number], way(getattr(network, name), values[place]))


@makes("routed")
def _routed(network: Assembled, values: list[Tensor], step: Step) -> Run:
    """A layer whose weights are chosen for every position."""
    place, x = read(values, step)
    if x.dim() < 2:
        raise DoesNotFit
    width, out, way = x.shape[-1], 1 + step.a // 4 % 3, _way(step)
    name, number = chosen(network, tuple(x.shape[:-1]), ROWS, step.c // 3 % 2), network.weight(ROWS, out, width)
    functions: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
        lambda v, w, i: torch.einsum("...d,...ed->...e", v, w[i]),
        lambda v, w, i: torch.einsum("...d,...ed->...e", v, w[i]).relu(),
        lambda v, w, i: torch.bmm(w[i.reshape(-1)], v.reshape(-1, width, 1)).reshape(*v.shape[:-1], out),
        lambda v, w, i: torch.einsum("n...d,n...ed->...e", v, w[i]),
    )
    function = functions[step.a % len(functions)]
    return lambda values: function(values[place], network.weights[number], way(getattr(network, name), values[place]))


@makes("moved_by_data")
def _moved_by_data(network: Assembled, values: list[Tensor], step: Step) -> Run:
    """Positions along one axis, chosen from themselves."""
    place, x = read(values, step)
    axis = step.b % x.dim()
    name = chosen(network, (x.shape[axis],), x.shape[axis], step.c % 2)
    functions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda v, i: v.index_select(axis, i),
        lambda v, i: v + v.index_select(axis, i),
        lambda v, i: v * v.index_select(axis, i.flip(0)),
        lambda v, i: torch.take_along_dim(v, i.reshape([-1 if d == axis else 1 for d in range(v.dim())]), axis),
    )
    function = functions[step.a % len(functions)]
    return lambda values: function(values[place], getattr(network, name))
