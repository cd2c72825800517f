"""Bounds of norms from charges: true for all weights, tight where they should be, false for networks without the symmetry."""

import pytest
import sympy as sp
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.errors import RuleError
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.norm_bounds import norm_bounds, norm_relations


class Powers(nn.Module):
    def __init__(self, degree: int = 1, bias: bool = False, gated: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4, bias=bias), nn.Linear(5 if gated else 4, 4, bias=bias), nn.Linear(4, 2, bias=bias)
        self.degree, self.gated = degree, gated

    def forward(self, inputs: Tensor) -> Tensor:
        if self.gated:
            return self.c(self.a(inputs) * self.b(inputs))
        hidden = torch.relu(self.a(inputs)) ** self.degree
        return self.c(torch.relu(self.b(hidden)) ** self.degree)


def laws(network: nn.Module) -> Laws:
    return nf.derive(nf.trace(network, torch.zeros(3, 5)))


NETWORKS = {
    "relu": Powers(),
    "relu with biases": Powers(bias=True),
    "relu squared": Powers(2, bias=True),
    "relu cubed": Powers(3),
    "gated": Powers(gated=True, bias=True),
    "linear": nf.models.MLP([5, 4, 3, 2], activation="linear"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_for_all_weights(name: str) -> None:
    found, network = laws(NETWORKS[name]), NETWORKS[name]
    relations = norm_relations(found)
    blocks = {block for r in relations for block, _ in r.weights}
    drawn = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 10.0):
        tensors = {
            n: torch.randn(p.shape, generator=drawn, dtype=torch.float64) * scale ** torch.rand(1, generator=drawn).item()
            for n, p in network.named_parameters()
        }
        charges = {r.name: r.measured(tensors) for r in relations}
        size = sum(b.measured(tensors) for b in blocks)
        for given in blocks:
            bounds = norm_bounds(found, given.parameter)
            limits = bounds.evaluated(charges, tensors)
            for block in bounds.bounds:
                # norms and charges are sums that round in a different order
                assert block.measured(tensors) <= limits[block.parameter] + 1e-13 * size * 9
            assert set(bounds.bounds) | set(bounds.unreached) == blocks


def test_the_published_relations() -> None:
    for degree in (1, 2, 3):
        for bias in (False, True):
            first, second = norm_relations(laws(Powers(degree, bias=bias)))
            assert {b.parameter: w for b, w in first.weights} == {"a.weight": 1, "b.weight": -degree} | ({"a.bias": 1} if bias else {})
            assert {b.parameter: w for b, w in second.weights} == {"b.weight": 1, "c.weight": -degree} | ({"b.bias": 1} if bias else {})


def test_without_biases_any_layer_bounds_all_with_biases_only_the_last() -> None:
    plain, biased = laws(Powers()), laws(Powers(bias=True))
    assert [len(norm_bounds(plain, f"{k}.weight").unreached) for k in "abc"] == [0, 0, 0]
    unreached = [{b.parameter for b in norm_bounds(biased, f"{k}.weight").unreached} for k in "abc"]
    assert unreached == [{"a.bias", "b.weight", "b.bias", "c.weight"}, {"b.bias", "c.weight"}, set()]


def test_a_bound_has_the_degree_in_it() -> None:
    bounds = norm_bounds(laws(Powers(3)), "c.weight")
    charges = sp.symbols("2Q_0 2Q_1", real=True)
    (first,) = (bound for block, bound in bounds.bounds.items() if block.parameter == "a.weight")
    known = bounds.known[0].norm
    assert sp.expand(first - charges[0] - 3 * charges[1] - 9 * known) == 0
    (back,) = (bound for block, bound in norm_bounds(laws(Powers(3)), "a.weight").bounds.items() if block.parameter == "b.weight")
    assert sp.expand(3 * back + charges[0] - sp.Symbol("|a.weight|^2", nonnegative=True)) == 0


def descend(network: nn.Module, relations: tuple, steps: int = 60, rate: float = 0.1) -> tuple[list[float], dict[str, float]]:
    """Errors of the exact motion of 2 Q in roundings of the norms, and the charges that it tells at the end."""
    drawn = torch.Generator().manual_seed(3)
    x = torch.randn(16, 5, generator=drawn, dtype=torch.float64)
    y = torch.randn(16, 2, generator=drawn, dtype=torch.float64)
    names = dict(network.double().named_parameters())
    told = {r.name: r.measured(names) for r in relations}
    for _ in range(steps):
        loss = nn.functional.mse_loss(network(x), y)
        gradients = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
        told = {r.name: told[r.name] + rate**2 * r.measured(gradients) for r in relations}
        with torch.no_grad():
            for n, g in gradients.items():
                names[n] -= rate * g
    size = sum(float(p.detach().square().sum()) for p in names.values())
    return [abs(r.measured(names) - told[r.name]) / (2.0**-53 * size) for r in relations], told


@pytest.mark.parametrize("name", ["relu", "relu with biases", "relu squared", "gated"])
def test_descent_moves_relations_by_their_own_value_at_the_gradient(name: str) -> None:
    torch.manual_seed(5)
    network = Powers(2 if "squared" in name else 1, name != "relu", name == "gated")
    relations = norm_relations(laws(network))
    errors, _ = descend(network, relations)
    assert max(errors) < 60 * 4, "each of 60 steps rounds norms a few times"


def test_the_chain_of_relu_is_false_for_tanh() -> None:
    torch.manual_seed(5)
    relations = norm_relations(laws(Powers()))
    network = Powers()
    wrong = nf.models.MLP([5, 4, 4, 2], activation="tanh", bias=False)
    renamed = dict(zip("abc", wrong.layers, strict=True))

    class Tanh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = renamed["a"], renamed["b"], renamed["c"]

        def forward(self, inputs: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(inputs)))))

    assert norm_relations(laws(Tanh())) == ()
    assert max(descend(network, relations)[0]) < 240
    assert min(descend(Tanh(), relations)[0]) > 1e9


def test_parts_of_a_fused_weight_have_norms_of_their_own() -> None:
    """Query, key and value lie in one weight: one name for all made |W_q|² - |W_k|² = 0, and |W_v|² the norm of all three."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.a(x, x, x, need_weights=False)[0])

    torch.manual_seed(0)
    network = Attention().double()
    tensors = {n: torch.randn_like(p) for n, p in network.named_parameters()}
    found = nf.derive(nf.trace(network, torch.randn(2, 3, 4, dtype=torch.float64)))
    relations = norm_relations(found)
    for r in relations:
        values = {b.norm: b.measured(tensors) for b, _ in r.weights} | {r.charge: r.measured(tensors)}
        rest = (r.equation.lhs - r.equation.rhs).xreplace(values)
        assert abs(float(rest)) < 1e-13, "squares of about one hundred weights of size one, each rounded"
    value = "a.in_proj_weight[8:12, 0:4]"
    limits = norm_bounds(found, "a.out_proj.weight").evaluated({r.name: r.measured(tensors) for r in relations}, tensors)
    assert float(tensors["a.in_proj_weight"][8:].square().sum()) <= limits[value] < float(tensors["a.in_proj_weight"].square().sum())
    assert "a.out_proj.weight" in {b.parameter for b in norm_bounds(found, [value, "a.in_proj_bias"]).bounds}


def test_groups_with_step_sizes_of_their_own_weigh_the_norms() -> None:
    """Gradient flow at two speeds keeps |W0|²/η0 - |W1|²/η1; without the step sizes not even the side of a norm is known."""
    torch.manual_seed(0)
    network, rates = nf.models.MLP([5, 4, 2], bias=False).double(), (0.1, 0.4)
    weights = [layer.weight for layer in network.layers]
    optimizer = torch.optim.SGD([{"params": [w], "lr": r} for w, r in zip(weights, rates, strict=True)])
    found = nf.derive(nf.trace(network, torch.randn(3, 5).double()), nf.rule_of(optimizer))
    with pytest.raises(RuleError, match="eta_0"):
        norm_bounds(found, "layers.1.weight")
    (relation,) = norm_relations(found, {"eta_0": rates[0], "eta_1": rates[1]})
    before = relation.measured(dict(network.named_parameters()))
    nn.functional.mse_loss(network(torch.ones(3, 5).double()), torch.ones(3, 2).double()).backward()
    steps = {f"layers.{k}.weight": r * w.grad for k, (w, r) in enumerate(zip(weights, rates, strict=True))}
    optimizer.step()
    # one step of gradient descent adds the relation of the step itself: the exact law, in a form that knows the weights
    after = relation.measured(dict(network.named_parameters()))
    assert after - before == pytest.approx(relation.measured(steps), abs=1e-13)
    assert abs(after - before) > 1e-6
    bounds = norm_bounds(found, "layers.1.weight", {"eta_0": rates[0], "eta_1": rates[1]})
    limit = bounds.evaluated({relation.name: after}, dict(network.named_parameters()))["layers.0.weight"]
    assert limit == pytest.approx(float(weights[0].detach().square().sum()), rel=1e-13), "with one term on either side an equality"


def test_what_no_charge_holds_is_refused() -> None:
    with pytest.raises(RuleError, match=r"c\.bias"):
        norm_bounds(laws(Powers(bias=True)), "c.bias")


def test_it_can_be_read() -> None:
    text = str(norm_bounds(laws(Powers(bias=True)), "b.weight"))
    assert "|a.weight|^2 ≤ 2Q_0 + |b.weight|^2" in text
    assert "not bounded: b.bias, c.weight" in text
