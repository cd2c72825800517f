"""How many directions of parameter space change what a network computes: a measurement that needs no theory.

The rank of the Jacobian of the outputs on much random data, by all trainable parameters, is the number of directions that are seen. The
others are symmetries of the function; a theory that claims a complete list must find exactly as many.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from noetherflow.errors import ModelError

# Singular values below this part of the largest one may be zero; whether they are, the gap tells.
SMALL: Final = 1e-7
ROWS_AT_ONCE: Final = 128


@dataclass(frozen=True, slots=True)
class FunctionalRank:
    """Rank of a network's function.

    Attributes
    ----------
    parameters : int
        Trainable parameters, D.
    rank : int
        Directions that change the outputs.
    gap : float
        Smallest singular value counted over the largest one not counted; near 1 the rank is not well defined, 1e6 and more is a clear cut.
    """

    parameters: int
    rank: int
    gap: float

    @property
    def defect(self) -> int:
        """Directions that change nothing, D - rank."""
        return self.parameters - self.rank


def functional_rank(
    model: nn.Module, batches: Iterable[Tensor], *, readout: Callable[[Tensor], Tensor] | None = None, seed: int = 0
) -> FunctionalRank:
    """Measure the rank of the outputs' Jacobian over all batches together.

    Parameters
    ----------
    model
        Usually in float64 and, if its layers look at whole batches, in training mode. Its parameters are taken as they are.
    batches
        Inputs; together they must give at least as many output numbers as there are parameters.
    readout
        What of the output counts; ``functools.partial(torch.log_softmax, dim=1)`` for what a cross-entropy sees. All of it by default.
    seed
        Set before every forward pass, so that dropout draws the same masks.

    Returns
    -------
    FunctionalRank
        Sampled: a lower bound of the rank at these parameters, and with probability one the rank if the data are random and many.

    Raises
    ------
    ModelError
        There are too few data, or derivatives that are not finite.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    >>> measured = functional_rank(model, [torch.randn(60, 2, dtype=torch.float64)])
    >>> measured.parameters, measured.defect, measured.gap > 1e6
    (13, 3, True)
    """
    rows, names = jacobian_rows(model, batches, readout=readout, seed=seed)
    return FunctionalRank(sum(names.values()), *numerical_rank(rows))


def jacobian_rows(
    model: nn.Module, batches: Iterable[Tensor], *, readout: Callable[[Tensor], Tensor] | None = None, seed: int = 0
) -> tuple[Tensor, dict[str, int]]:
    """The Jacobian of all outputs by all trainable parameters; its columns are the parameters' entries, in the order of the second result.

    Arguments and errors are those of `functional_rank`.

    Returns
    -------
    Tensor, shape (outputs, D)
    dict of str to int
        Entries of each parameter.
    """
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    sizes = {n: p.numel() for n, p in parameters.items()}
    count = sum(sizes.values())
    rows = torch.cat([_jacobian(model, parameters, batch, readout, seed) for batch in batches])
    if len(rows) < count:
        raise ModelError(f"{len(rows)} output numbers cannot show the rank of {count} parameters. Give more batches.", rows=len(rows))
    if not torch.isfinite(rows).all():
        raise ModelError("The Jacobian of the outputs is not finite at these parameters. Choose others, or check the data.")
    return rows, sizes


def null_space(matrix: Tensor) -> tuple[Tensor, float]:
    """An orthonormal basis of what a matrix maps to zero, shape (columns, defect), and the spectral gap at its rank.

    >>> basis, gap = null_space(torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], dtype=torch.float64))
    >>> basis.shape, gap > 1e6
    (torch.Size([2, 1]), True)
    """
    lengths = _lengths(matrix.T).clamp(min=torch.finfo(matrix.dtype).tiny)
    scaled = _unit(matrix / lengths)
    rank, gap = numerical_rank(matrix)
    vectors = torch.linalg.svd(scaled, full_matrices=True)[2][rank:].T
    return torch.linalg.qr(vectors / lengths.unsqueeze(1))[0], gap


def reduced(rows: Tensor) -> Tensor:
    """The same row space in reduced form: each row has one entry, the largest left, that no other row has.

    >>> reduced(torch.tensor([[1.0, 2.0], [1.0, 4.0]])).abs().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    rows = rows.clone()
    for i in range(len(rows)):
        pivot = int(rows[i].abs().argmax())
        rows[i] /= rows[i, pivot].clone()
        others = torch.arange(len(rows)) != i
        rows[others] -= rows[others, pivot].unsqueeze(1) * rows[i]
    return rows


def numerical_rank(matrix: Tensor) -> tuple[int, float]:
    """Rank of a matrix and the spectral gap there; rows and columns are brought to length one first, which changes no rank.

    >>> numerical_rank(torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], dtype=torch.float64))[0]
    1
    """
    values = torch.linalg.svdvals(_unit(_unit(matrix).T))
    if not len(values) or values[0] == 0:
        return 0, torch.inf
    floor = torch.finfo(values.dtype).eps * values[0]  # below it one zero is not smaller than another
    padded = torch.cat([values, values.new_zeros(1)]).clamp(min=floor)
    ratios = torch.where(padded[1:] <= SMALL * values[0], padded[:-1] / padded[1:], 0.0)
    rank = int(ratios.argmax()) + 1
    return rank, float(ratios[rank - 1])


def _jacobian(
    model: nn.Module, parameters: dict[str, Tensor], batch: Tensor, readout: Callable[[Tensor], Tensor] | None, seed: int
) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        output = functional_call(model, parameters, (batch,))
    flat = (output if readout is None else readout(output)).flatten()
    leaves = list(parameters.values())
    chunks = []
    for cotangents in torch.split(torch.eye(len(flat), dtype=flat.dtype), ROWS_AT_ONCE):
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            flat, leaves, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        blocks = [
            p.new_zeros(len(cotangents), p.numel()) if g is None else g.reshape(len(cotangents), -1)
            for p, g in zip(leaves, found, strict=True)
        ]
        chunks.append(torch.cat(blocks, 1))
    return torch.cat(chunks)


def _lengths(matrix: Tensor) -> Tensor:
    """Length of each row; one for rows that are zero but for rounding."""
    lengths = matrix.norm(dim=1)
    return torch.where(lengths > 1e-10 * lengths.max(), lengths, 1.0)


def _unit(matrix: Tensor) -> Tensor:
    lengths = matrix.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-10 * lengths.max(), matrix / lengths.clamp(min=torch.finfo(matrix.dtype).tiny), 0.0)
