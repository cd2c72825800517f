"""Chunked reductions against exact rational arithmetic, over dtypes, strides, kept axes and chunk sizes."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from noetherflow.bridge import kernels_torch
from noetherflow.bridge.kernels_torch import KernelError, Reducer, Request, reduce

ROUND_OFF = 2.0**-53
#: Blocked sums have short chains: far fewer roundings meet one value than there are values.
ROUNDINGS = 64

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
COMBINATIONS = {"u": {"gradient": 1.0, "theta": 5e-4, "buffer": 0.9}, "lookahead": {"theta": 1.0, "buffer": -0.1}}


# ---------------------------------------------------------------- the exact reference


def rational(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.vectorize(Fraction, otypes=[object])(tensor.detach().double().numpy())


def exact(
    tensors: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], request: Request, *, absolute: bool = False
) -> np.ndarray[Any, Any]:
    """The request in rational arithmetic; with every term's absolute value for `absolute`."""
    size = abs if absolute else (lambda value: value)
    vectors = {name: np.asarray(size(rational(one)), dtype=object) for name, one in tensors.items()}
    for name, parts in combinations.items():
        vectors[name] = np.asarray(sum(size(Fraction(c)) * vectors[part] for part, c in parts.items()), dtype=object)
    x, y = vectors[request.x], vectors[request.y or request.x]
    others = tuple(axis for axis in range(x.ndim) if axis not in request.keep)
    if request.kind == "gram":
        left, right = (np.moveaxis(one, request.keep[0], 0).reshape(one.shape[request.keep[0]], -1) for one in (x, y))
        return left @ right.T
    terms = np.asarray({"pairing": lambda: x * y, "sum": lambda: x, "fourth": lambda: (x * y) ** 2}[request.kind](), dtype=object)
    total = np.asarray(terms.sum(axis=others) if others else terms, dtype=object)
    return total.transpose([sorted(request.keep).index(axis) for axis in request.keep])


def assert_close(got: Tensor, tensors: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], request: Request) -> None:
    want, scale = (exact(tensors, combinations, request, absolute=absolute) for absolute in (False, True))
    assert got.dtype == torch.float64
    assert tuple(got.shape) == want.shape
    for value, truth, bound in zip(got.flatten().tolist(), want.flatten(), scale.flatten(), strict=True):
        assert abs(Fraction(value) - truth) <= ROUNDINGS * ROUND_OFF * bound, f"{request}: {value} for {float(truth)}"


@pytest.fixture(params=[1, 7, 64, None], ids=lambda budget: f"chunk-{budget or 'default'}")
def chunk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Chunks so small that small tensors have many, none of which divides them; or the default."""
    with chunks_of(request.param):
        yield


class chunks_of:  # noqa: N801 - reads as a phrase
    """Sets the chunk size, and leaves no program compiled for another."""

    def __init__(self, budget: int | None) -> None:
        self.budget = budget

    def __enter__(self) -> None:
        self.saved = kernels_torch.CHUNK_CPU, kernels_torch.SMALL
        if self.budget is not None:
            kernels_torch.CHUNK_CPU, kernels_torch.SMALL = self.budget, 0  # type: ignore[misc]
        kernels_torch._compile.cache_clear()

    def __exit__(self, *_: object) -> None:
        kernels_torch.CHUNK_CPU, kernels_torch.SMALL = self.saved  # type: ignore[misc]
        kernels_torch._compile.cache_clear()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=generator(seed + i)).to(dtype) for i, name in enumerate(("theta", "gradient", "buffer"))}


def every_request(ndim: int) -> list[Request]:
    keeps = [keep for length in range(ndim + 1) for keep in itertools.combinations(range(ndim), length)]
    pairs = [("theta", "theta"), ("u", "u"), ("u", "buffer"), ("lookahead", "theta")]
    sums = [Request("sum", x, None, keep) for x in ("theta", "u") for keep in keeps]
    pairings = [Request("pairing", x, y, keep) for x, y in pairs for keep in keeps]
    fourths = [Request("fourth", x, y, keep) for x, y in pairs[:3] for keep in keeps[:3]]
    grams = [Request("gram", x, y, (axis,)) for x, y in pairs[1:] for axis in range(ndim)]
    return sums + pairings + fourths + grams


# ---------------------------------------------------------------- correctness


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 4, 1, 3), ()], ids=str)
def test_every_kind_and_keep_agrees_with_rational_arithmetic(shape: tuple[int, ...], dtype: torch.dtype, chunk: None) -> None:
    tensors, requests = state(shape, dtype), every_request(len(shape))
    for request, got in zip(requests, reduce(tensors, COMBINATIONS, requests), strict=True):
        assert_close(got, tensors, COMBINATIONS, request)


STRIDED = {
    "transposed": lambda t: t.transpose(0, 1),
    "permuted": lambda t: t.permute(3, 1, 0, 2),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "sliced": lambda t: t[:, ::2, 1:, :],
    "expanded": lambda t: t[:, :1, :, :].expand(-1, 4, -1, -1),
    "scalar expanded": lambda t: t[:1, :1, :1, :1].expand(3, 2, 2, 5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("view", STRIDED)
def test_views_agree_with_rational_arithmetic(view: str, dtype: torch.dtype, chunk: None) -> None:
    tensors = {name: STRIDED[view](one) for name, one in state((3, 4, 2, 3), dtype).items()}
    # One tensor with the strides of a fresh one: operands of one call need not lie alike in memory.
    tensors["buffer"] = tensors["buffer"].contiguous()
    requests = every_request(4)[::3]
    for request, got in zip(requests, reduce(tensors, COMBINATIONS, requests), strict=True):
        assert_close(got, tensors, COMBINATIONS, request)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), shape=st.lists(st.integers(1, 4), max_size=6), budget=st.integers(1, 200), seed=st.integers(0, 99))
def test_integers_are_summed_without_any_error(data: st.DataObject, shape: list[int], budget: int, seed: int) -> None:
    """Any shape, any memory order, any order of the kept axes, any chunk size."""
    order = data.draw(st.permutations(range(len(shape))))
    keep = tuple(data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(0, len(shape)))])
    x, y = (torch.randint(-9, 10, tuple(shape), generator=generator(seed + i)).float().permute(order) for i in range(2))
    requests = [Request("pairing", "x", "y", keep), Request("sum", "x", None, keep), Request("fourth", "x", "y", keep)]
    requests += [Request("gram", "x", "y", (axis,)) for axis in keep]
    with chunks_of(budget):
        results = reduce({"x": x, "y": y}, {}, requests)
    for request, got in zip(requests, results, strict=True):
        assert got.tolist() == exact({"x": x, "y": y}, {}, request).tolist()


@pytest.mark.parametrize(
    "shape", [(1031, 67, 3, 3), (97, 7001), (655_360,), (655_361,), (5, 200_003), (700_001, 2), (2, 3, 300_007)], ids=str
)
def test_default_chunks_of_large_tensors_miss_and_repeat_nothing(shape: tuple[int, ...]) -> None:
    """Integers, so that int64 arithmetic is the truth; sizes on and off the chunk size."""
    x, y = (torch.randint(-9, 10, shape, generator=generator(i)) for i in range(2))
    keeps = [
        (),
        *[(axis,) for axis in range(len(shape))],
        (0, len(shape) - 1) if len(shape) > 1 else (0,),
        tuple(range(min(len(shape), 2))),
    ]
    requests = [Request("pairing", "x", "y", keep) for keep in keeps] + [Request("sum", "y", None, keep) for keep in keeps]
    tensors = {"x": x.float(), "y": y.float()}
    for request, got in zip(requests, reduce(tensors, {}, requests), strict=True):
        others = [axis for axis in range(len(shape)) if axis not in request.keep]
        product = x * y if request.kind == "pairing" else y
        assert torch.equal(got.long(), product.sum(others) if others else product)


def test_gram_matrices_of_several_axes_over_many_chunks() -> None:
    x, y = (torch.randint(-9, 10, (130, 70, 3, 40), generator=generator(i)).double() for i in range(2))
    requests = [Request("gram", "x", "y", (axis,)) for axis in (1, 0)] + [
        Request("gram", "y", "x", (1,)),
        Request("pairing", "x", "y", (2,)),
    ]
    first, second, turned, pairing = reduce({"x": x, "y": y}, {}, requests)
    assert torch.equal(first, torch.einsum("oihw,ojhw->ij", x, y))
    assert torch.equal(second, torch.einsum("oihw,pihw->op", x, y))
    assert torch.equal(turned, first.T)
    assert torch.equal(pairing, (x * y).sum((0, 1, 3)))


# ---------------------------------------------------------------- precision


@pytest.mark.slow
def test_ten_million_float32_values_where_a_float32_norm_is_visibly_wrong() -> None:
    w = torch.rand(2_500, 4_000, generator=generator(3)) + 0.5
    # Squares of float32 values are exact in float64, and fsum rounds once.
    truth = math.fsum((w.double() ** 2).flatten().numpy())
    total, rows = reduce({"w": w}, {}, [Request("pairing", "w", "w"), Request("pairing", "w", "w", (0,))])
    assert abs(total.item() - truth) <= 1e-14 * truth
    assert abs(math.fsum(rows.tolist()) - truth) <= 1e-14 * truth
    naive = torch.linalg.vector_norm(w).item() ** 2
    assert abs(naive - truth) > 1e-6 * truth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cancellation_leaves_an_error_relative_to_the_absolute_values_only(dtype: torch.dtype) -> None:
    """Large terms of both signs whose sum is tiny: float32 accumulation would keep no digit."""
    half = torch.randn(50_000, generator=generator(5)).to(dtype) * 1e4
    x = torch.cat([half, -half, torch.full((7,), 2.0**-10, dtype=dtype)])[torch.randperm(100_007, generator=generator(6))]
    y = torch.ones_like(x)
    (got,) = reduce({"x": x, "y": y}, {}, [Request("pairing", "x", "y")])
    assert abs(got.item() - 7 * 2.0**-10) <= ROUNDINGS * ROUND_OFF * x.abs().double().sum().item()


def test_products_of_float32_are_not_rounded_to_float32() -> None:
    x = torch.full((20_000,), 1 + 2.0**-23)
    (got,) = reduce({"x": x}, {}, [Request("pairing", "x", "x")])
    assert got.item() == 20_000 * (1 + 2.0**-23) ** 2
    assert got.item() != (x * x).double().sum().item()


def test_a_combination_with_new_coefficients_is_evaluated_anew() -> None:
    tensors, request = state((40, 50), torch.float32), [Request("sum", "u")]
    one, two = (reduce(tensors, {"u": {"theta": c, "buffer": 1.0}}, request)[0].item() for c in (1.0, 2.0))
    assert two - one == pytest.approx(tensors["theta"].double().sum().item(), abs=1e-9)


# ---------------------------------------------------------------- what must not be confused


def test_a_transposed_keep_is_a_transposed_result_and_rows_are_not_columns() -> None:
    tensors = state((6, 6, 3), torch.float32)
    requests = [Request("pairing", "theta", "theta", keep) for keep in ((0, 1), (1, 0), (0,), (1,))]
    straight, transposed, rows, columns = reduce(tensors, {}, requests)
    assert torch.equal(straight.T, transposed)
    assert not torch.allclose(straight, transposed)
    assert not torch.allclose(rows, columns)


def test_pairings_of_different_vectors_differ_and_their_order_does_not_matter() -> None:
    tensors = state((200, 300), torch.float32)
    pairs = [("u", "buffer"), ("buffer", "u"), ("u", "u"), ("buffer", "buffer"), ("theta", "buffer")]
    mixed, turned, *others = reduce(tensors, COMBINATIONS, [Request("pairing", x, y, (0,)) for x, y in pairs])
    assert torch.equal(mixed, turned)
    assert not any(torch.allclose(mixed, other) for other in others)


def test_the_gram_matrix_of_x_and_y_is_not_that_of_y_and_x() -> None:
    tensors = state((5, 4), torch.float32)
    straight, turned = reduce(tensors, {}, [Request("gram", "theta", "buffer", (0,)), Request("gram", "buffer", "theta", (0,))])
    assert torch.allclose(straight, turned.T, rtol=1e-13)
    assert not torch.allclose(straight, turned)


# ---------------------------------------------------------------- behaviour


class Ledger(TorchDispatchMode):
    """Notes how many elements are converted to float64, and the largest float64 result."""

    def __init__(self) -> None:
        super().__init__()
        self.converted = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            self.converted += args[-1].numel()
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            self.largest = max(self.largest, result.numel())
        return result


def test_every_tensor_is_read_once_and_no_float64_copy_of_it_is_made() -> None:
    tensors = state((300, 400, 3, 3), torch.float32)
    pairs = [("theta", "theta"), ("u", "u"), ("u", "buffer"), ("theta", "buffer")]
    requests = [Request("pairing", x, y, keep) for x, y in pairs for keep in ((0,), (1,), ())]
    requests += [Request("sum", "theta"), Request("fourth", "u", "theta", (0,)), Request("gram", "theta", "buffer", (0,))]
    with Ledger() as ledger:
        reduce(tensors, {"u": COMBINATIONS["u"]}, requests)
    assert ledger.converted == 3 * tensors["theta"].numel()
    assert ledger.largest <= kernels_torch.CHUNK_CPU < tensors["theta"].numel()


@pytest.mark.parametrize("shape", [(700, 400, 3, 3), (64,)], ids=str)
def test_the_same_call_gives_the_same_bits(shape: tuple[int, ...]) -> None:
    tensors, requests = state(shape, torch.float32), [*every_request(1), Request("pairing", "u", "theta", (0,))]
    requests = [request for request in requests if request.kind != "gram"]
    first, second = reduce(tensors, COMBINATIONS, requests), reduce(tensors, COMBINATIONS, requests)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(64,), (200, 100), (900, 1000)], ids=str)
def test_results_share_no_memory_with_operands_or_later_calls(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors, keep = state(shape, dtype), tuple(range(len(shape)))
    before = {name: one.clone() for name, one in tensors.items()}
    requests = [
        Request("sum", "theta", None, keep),
        Request("pairing", "theta", "theta", keep),
        Request("pairing", "buffer", "buffer", keep),
    ]
    results = reduce(tensors, {}, requests)
    kept = [one.clone() for one in results]
    reduce({name: one + 1 for name, one in tensors.items()}, {}, requests)
    assert all(torch.equal(a, b) for a, b in zip(results, kept, strict=True))
    for one in results:
        one.zero_()
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_parameters_and_inference_mode_leave_no_trace() -> None:
    """Neither a graph is recorded, nor does a buffer first made in inference mode refuse later calls."""
    kernels_torch._WORKSPACE.flat.clear()
    tensors = {"theta": torch.nn.Parameter(torch.randn(300, 200, generator=generator(1)))}
    request = [Request("pairing", "theta", "theta", (0,))]
    with torch.inference_mode():
        (inside,) = reduce(tensors, {}, request)
    (outside,) = reduce(tensors, {}, request)
    assert torch.equal(inside, outside)
    assert not outside.requires_grad


def test_threads_do_not_write_into_each_others_buffers() -> None:
    request, wrong = [Request("pairing", "theta", "theta", (0,))], list[int]()

    def work(seed: int) -> None:
        tensors = {"theta": torch.randint(-9, 10, (300, 200), generator=generator(seed)).float()}
        truth = tensors["theta"].double().square().sum(1)
        wrong.extend(seed for _ in range(200) if not torch.equal(reduce(tensors, {}, request)[0], truth))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (2, 0, 3)], ids=str)
def test_empty_tensors_give_zeros(shape: tuple[int, ...], chunk: None) -> None:
    tensors = state(shape, torch.float32)
    requests = [request for request in every_request(len(shape)) if request.kind != "fourth"]
    for request, got in zip(requests, reduce(tensors, COMBINATIONS, requests), strict=True):
        sizes = [shape[axis] for axis in request.keep]
        assert list(got.shape) == (sizes * 2 if request.kind == "gram" else sizes)
        assert not got.any()


def test_no_requests_give_no_results_and_reduce_is_a_reducer() -> None:
    reducer: Reducer = reduce
    assert reducer({"theta": torch.ones(3)}, {}, []) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accelerators_agree_with_the_cpu(dtype: torch.dtype) -> None:
    tensors, requests = state((30, 20, 3, 3), dtype), every_request(4)
    there = reduce({name: one.cuda() for name, one in tensors.items()}, COMBINATIONS, requests)
    for request, got in zip(requests, there, strict=True):
        assert got.is_cuda
        assert_close(got.cpu(), tensors, COMBINATIONS, request)


# ---------------------------------------------------------------- errors

A, B = torch.ones(2, 3), torch.ones(3, 2)
REFUSED = {
    "other shape": ({"a": A, "b": B}, {}, [], r"'b' has shape \(3, 2\).*'a' has shape \(2, 3\).*one parameter per call"),
    "other device": ({"a": A, "b": A.to("meta")}, {}, [], r"'b' has shape \(2, 3\) on meta.*on cpu"),
    "integers": ({"a": A.long()}, {}, [], r"'a' has dtype torch.int64.*float32"),
    "no tensors": ({}, {}, [], "`tensors` is empty"),
    "unknown x": ({"a": A}, {}, [Request("sum", "b")], r"no vector named b; there are \['a'\]"),
    "unknown y": ({"a": A}, {}, [Request("pairing", "a", "v")], "no vector named v"),
    "unknown part": ({"a": A}, {"u": {"b": 1.0}}, [], r"'u' of \['b'\] cannot be formed"),
    "no parts": ({"a": A}, {"u": {}}, [], "at least one part"),
    "name taken": ({"a": A}, {"a": {"a": 1.0}}, [], "a name that no tensor has"),
    "combination of combinations": ({"a": A}, {"u": {"a": 1.0}, "v": {"u": 1.0}}, [], "'v' of"),
    "axis too large": ({"a": A}, {}, [Request("sum", "a", None, (2,))], r"cannot keep axes \(2,\).*from 0 to 1"),
    "negative axis": ({"a": A}, {}, [Request("sum", "a", None, (-1,))], "counted from the front"),
    "axis twice": ({"a": A}, {}, [Request("sum", "a", None, (0, 0))], "each axis once"),
    "pairing of one": ({"a": A}, {}, [Request("pairing", "a")], "every other kind has two"),
    "sum of two": ({"a": A}, {}, [Request("sum", "a", "a")], "a sum has one vector"),
    "gram of two axes": ({"a": A}, {}, [Request("gram", "a", "a", (0, 1))], "exactly one axis, not 2"),
    "unknown kind": ({"a": A}, {}, [Request("norm", "a", "a")], "unknown kind"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused_with_the_reason(case: str) -> None:
    tensors, combinations, requests, message = REFUSED[case]
    with pytest.raises(KernelError, match=message):
        reduce(tensors, combinations, requests)
