"""Networks made to deceive: (name, function, parts, loss, generators). What is named after positions takes inputs with positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support.cases import EPS
from torch import Tensor, nn
from torch.nn import functional as F


def linears(*names: str, **sizes: tuple[int, int]) -> dict[str, nn.Module]:
    return {n: nn.Linear(*sizes.get(n, (3, 4)), bias=n in names) for n in sizes}


def overwritten_by_its_view(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    h.view(-1).tanh_()
    return s.b(h)


def view_overwritten_by_the_whole(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    view = h.view(-1, 2, 2)
    h.tanh_()
    return s.b(view.flatten(1))


def one_column_overwritten(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    h[:, 0].tanh_()
    return s.b(h)


def one_column_set(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    h[:, :2] = 1.0
    return s.b(h)


def overwritten_behind_idle_dropout(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    F.dropout(h, 0.5, training=False).select(1, 0).tanh_()
    return s.b(h)


def overwritten_twice(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    h.mul_(2.0).relu_()
    return s.b(h)


def weight_is_also_an_output(s: Any, x: Tensor) -> Any:
    return s.b(s.a(x).relu()), s.a.weight


def outer_split_in_four(s: Any, x: Tensor) -> Tensor:
    h, g = s.a(x), s.b(x)
    m = s.c(h * g)
    outer = (h[:, :, None] * g[:, None, :]).flatten(1)
    return m + torch.tanh(outer.view(-1, 2, 2, 2, 2)).sum((1, 2, 3, 4))[:, None]


def outer_added_to_a_split_axis(s: Any, x: Tensor) -> Tensor:
    h, g, q = s.a(x), s.b(x), s.d(x)
    m = s.c(h * g)
    outer = (h[:, :, None] * g[:, None, :]).flatten(1)
    return m + torch.tanh(outer + q).sum(1)[:, None] + q.view(-1, 2, 2, 2, 2).sum((1, 2, 3, 4))[:, None]


def added_in_two_factorisations(s: Any, x: Tensor) -> Tensor:
    h, g = s.a(x), s.b(x)
    u = torch.tanh(h.view(-1, 2, 3).sum(2)).sum(1)
    v = torch.tanh(g.view(-1, 3, 2).sum(2)).sum(1)
    return s.c(h + g) + (u + v)[:, None]


def norm_over_a_glued_batch(s: Any, x: Tensor) -> Tensor:
    return s.c(s.norm(torch.cat([s.a(x), s.b(x)], 0)))


def two_losses(s: Any, x: Tensor) -> Any:
    logits = s.b(s.a(x).relu())
    target = torch.zeros(len(x), dtype=torch.long)
    return F.cross_entropy(logits, target), F.mse_loss(logits, torch.ones_like(logits))


def two_cross_entropies(s: Any, x: Tensor) -> Any:
    logits = s.b(s.a(x).relu())
    target = torch.zeros(len(x), dtype=torch.long)
    return F.cross_entropy(logits, target), F.cross_entropy(0.5 * logits, target)


PAIR: dict[str, tuple[int, int]] = {"a": (3, 4), "b": (4, 2)}
BRANCHES: dict[str, tuple[int, int]] = {"a": (3, 4), "b": (3, 4), "c": (4, 2)}
SIX: dict[str, tuple[int, int]] = {"a": (3, 6), "b": (3, 6), "c": (6, 2)}
GLUED = linears("a", a=(3, 2), b=(2, 2))

DECEPTIONS: tuple[tuple[str, Callable[[Any, Tensor], Any], dict[str, Any], str | None, int], ...] = (
    ("a_view_is_overwritten", overwritten_by_its_view, linears(**PAIR), None, 0),
    ("the_whole_under_a_view_is_overwritten", view_overwritten_by_the_whole, linears(**PAIR), None, 0),
    ("one_column_is_overwritten", one_column_overwritten, linears(**PAIR), None, 0),
    ("one_column_is_set", one_column_set, linears(**PAIR), None, 0),
    ("overwritten_behind_idle_dropout", overwritten_behind_idle_dropout, linears(**PAIR), None, 0),
    ("overwritten_twice_under_one_name", overwritten_twice, linears(**PAIR), None, 4),
    ("a_weight_is_also_an_output", weight_is_also_an_output, linears(**PAIR), None, 0),
    ("rounded_to_integers", lambda s, x: s.b(s.a(x).to(torch.long).to(x.dtype)), linears(**PAIR), None, 0),
    ("alpha_dropout", lambda s, x: s.b(F.alpha_dropout(s.a(x), 0.4, True)), linears(**PAIR), None, 0),
    ("dropout_between_linear", lambda s, x: s.b(F.dropout(s.a(x), 0.4, True)), linears(**PAIR), None, 4),
    ("idle_dropout_between_linear", lambda s, x: s.b(F.dropout(s.a(x), 0.4, False)), linears(**PAIR), None, 16),
    (
        "two_heads_glued_before_softmax",
        lambda s, x: torch.cat([s.a(x), s.b(x)], 1),
        linears("a", "b", a=(3, 2), b=(3, 3)),
        "cross_entropy",
        1,
    ),
    (
        "two_batches_glued_before_norm",
        norm_over_a_glued_batch,
        linears("a", "b", **BRANCHES) | {"norm": nn.BatchNorm1d(4, eps=EPS)},
        None,
        4 + 4 + 4,
    ),
    ("outer_product_split_in_four", outer_split_in_four, linears(**BRANCHES), None, 1),
    ("outer_product_added_to_a_split_axis", outer_added_to_a_split_axis, linears(**BRANCHES, d=(3, 16)), None, 1),
    ("added_in_two_factorisations", added_in_two_factorisations, linears(**SIX), None, 0),
    (
        "an_outer_product_before_softmax",
        lambda s, x: s.b((h := s.a(x))[:, :, None].mul(h[:, None, :]).flatten(1)),
        linears("b", a=(3, 4), b=(16, 3)),
        "cross_entropy",
        16 + (4 + 3) + 1,
    ),
    ("a_tensor_times_itself", lambda s, x: s.b((h := s.a(x)) * h), linears(**PAIR), None, 4),
    ("a_gram_matrix", lambda s, x: (h := s.a(x)) @ h.t(), linears(a=(3, 4)), None, 6),
    ("multiplied_by_its_own_sum", lambda s, x: s.b((h := s.a(x)) * h.sum(1, keepdim=True)), linears(**PAIR), None, 1),
    ("a_weight_and_its_transpose", lambda s, x: F.linear(F.linear(x, s.a.weight).relu(), s.a.weight.t()), linears(a=(3, 4)), None, 0),
    ("a_weight_in_two_roles", lambda s, x: s.b(s.a(x).relu()) + s.a.weight.sum(), linears(**PAIR), None, 0),
    ("a_bias_seen_through_tanh", lambda s, x: s.b((s.a(x) + s.a.bias.tanh()).relu()), linears("a", **PAIR), None, 0),
    (
        "overlapping_slices",
        lambda s, x: s.b((h := s.a(x).relu())[:, :3]) + s.c(h[:, 1:].tanh()),
        linears(a=(3, 4), b=(3, 2), c=(3, 2)),
        None,
        1,
    ),
    ("a_slice_of_a_weight", lambda s, x: s.b(F.linear(x, s.a.weight[1:]).relu()), linears(a=(3, 4), b=(3, 2)), None, 3 + 3),
    ("glued_to_itself", lambda s, x: s.b(torch.cat([h := s.a(x).relu(), h], 1)), linears(a=(3, 4), b=(8, 2)), None, 4),
    ("softmax_in_the_middle", lambda s, x: s.b(s.a(x).softmax(1)), linears("a", **PAIR), None, 3 + 1),
    ("softmax_over_the_batch", lambda s, x: s.b(s.a(x).softmax(0)), linears("a", **PAIR), None, 4),
    ("a_mean_over_positions", lambda s, x: s.b(s.a(x).relu().mean(1)), linears(**PAIR), None, 4),
    (
        "a_bias_for_every_position",
        lambda s, x: s.b((s.a(x) + s.p).relu().mean(1)),
        linears(**PAIR) | {"p": nn.Parameter(torch.randn(5, 1))},
        None,
        1,
    ),
    ("two_losses_of_one_output", two_losses, linears("b", **PAIR), None, 4),
    ("two_cross_entropies_of_one_output", two_cross_entropies, linears("b", **PAIR), None, 4 + 4 + 1),
    ("a_gate_of_size_one", lambda s, x: s.b(s.a(x) * s.c(x).sigmoid()), linears(**PAIR, c=(3, 1)), None, 16),
    (
        "a_norm_and_what_it_reads_glued_by_positions",
        lambda s, x: s.b(torch.cat([s.layer(h := s.a(x)), h], 1)),
        linears("a", "b", **PAIR) | {"layer": nn.LayerNorm(4, eps=EPS)},
        None,
        2,
    ),
    (
        "two_norms_glued_by_positions",
        lambda s, x: s.b(torch.cat([s.layer(s.a(x)), s.layer(s.c(x))], 1)),
        linears("a", "b", "c", **PAIR, c=(3, 4)) | {"layer": nn.LayerNorm(4, eps=EPS, elementwise_affine=False)},
        None,
        3 + 1 + 1 + 3 + 1 + 1 + 3 + 2,
    ),
    (
        "a_bias_on_glued_positions",
        lambda s, x: torch.cat([s.b(s.a(x)), x[..., :2]], 1) + s.p,
        GLUED | {"p": nn.Parameter(torch.randn(2))},
        None,
        4,
    ),
    (
        "a_mean_of_glued_positions",
        lambda s, x: torch.cat([s.b(s.a(x)), x[..., :2]], 1).mean(1) + s.p,
        GLUED | {"p": nn.Parameter(torch.randn(2))},
        None,
        4,
    ),
    (
        "values_glued_by_positions",
        lambda s, x: F.scaled_dot_product_attention(x, torch.cat([x, x], 1), torch.cat([s.b(s.a(x)), x[..., :2]], 1)) + s.p,
        GLUED | {"p": nn.Parameter(torch.randn(2))},
        None,
        4,
    ),
    (
        "a_tied_weight_between_biases",
        lambda s, x: F.linear(F.linear(x + s.p, s.w, s.b), s.w.t(), s.c),
        {n: nn.Parameter(torch.randn(*size)) for n, size in {"w": (2, 3), "b": (2,), "c": (3,), "p": (3,)}.items()},
        None,
        3 + 2 + 1,
    ),
    ("a_null_bias_behind_a_weight", lambda s, x: s.b(s.a(x)), linears("a", "b", a=(3, 1), b=(1, 1)), "cross_entropy", 1 + 1 + 1),
    ("a_learned_scale", lambda s, x: s.t * s.a(x), linears(a=(3, 4)) | {"t": nn.Parameter(torch.ones(()))}, None, 1),
)
