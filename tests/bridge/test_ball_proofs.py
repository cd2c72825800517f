"""Counts of smooth networks as theorems, and what must not become one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import flint
import pytest
import torch
from support.block_cases import BLOCK_CASES
from support.cases import CASES
from torch import nn

import noetherflow as nf
from noetherflow.bridge.ball_proofs import prove
from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.completeness import counted, known_laws
from noetherflow.bridge.counted_flows import Gradient
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.law_verdict import Completeness
from noetherflow.bridge.sampling import Sampling
from noetherflow.errors import ModelError, ReportError
from noetherflow.numeric import ball_functions, ball_rules
from noetherflow.numeric.ball_traces import enclosure
from noetherflow.numeric.balls import Ball, NotEnclosed
from noetherflow.numeric.models import MLP
from noetherflow.symbolic.graph import ArchitectureGraph

TABLE = {case.name: case for case in (*CASES, *BLOCK_CASES)}


def normed(norm: nn.Module, *between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), norm, *between, nn.Linear(4, 3))


NETWORKS: dict[str, tuple[nn.Module, int]] = {
    "tanh": (MLP([3, 4, 2], "tanh"), 0),
    "gelu": (MLP([3, 4, 2], "gelu"), 0),
    "layer_norm_eps": (normed(nn.LayerNorm(4, eps=0.1)), 8),
    "layer_norm_relu": (normed(nn.LayerNorm(4, eps=0.1), nn.ReLU()), 8),
    "rms_norm_eps": (normed(nn.RMSNorm(4, eps=0.1)), 4),
    "elu": (nn.Sequential(nn.Linear(3, 3), nn.ELU(), nn.Linear(3, 2)), 0),
    "tall": (MLP([6, 12, 6], "tanh"), 0),
}


def graph_of(name: str) -> ArchitectureGraph:
    if name in NETWORKS:
        module = NETWORKS[name][0]
        return nf.trace(module, torch.zeros(1, module.get_submodule("layers.0" if isinstance(module, MLP) else "0").in_features))
    small = dataclasses.replace(TABLE[name], batch=4)
    torch.manual_seed(0)
    return nf.trace(small.build(), small.inputs(), loss=small.loss)


def count_of(name: str) -> Count:
    graph = graph_of(name)
    return counted(Sampling(graph, "0"), known_laws(graph, Gradient())[0], Gradient())


LAWS = {name: laws for name, (_, laws) in NETWORKS.items()} | {"attention_fused": 12, "swiglu": 3, "experts": 10}


@pytest.mark.parametrize("name", LAWS)
def test_smooth_networks_are_proved(name: str) -> None:
    found = nf.completeness(graph_of(name), balls=True)
    assert (found.laws_found, found.laws_possible, found.complete) == (LAWS[name], LAWS[name], True), found
    assert (found.mode, found.gap, found.unproved) == ("proved", torch.inf, "")
    assert found.proof is not None
    assert (len(found.proof.fields.rows), len(found.proof.charges.rows)) == (found.lie_dimension, found.laws_found)
    assert 0 < found.proof.fields.contraction < 1
    assert "proved in ball arithmetic of 53 bits" in str(found)


def test_proved_is_told_from_measured() -> None:
    measured, proved = (nf.completeness(graph_of("gelu"), balls=b) for b in (False, True))
    assert (measured.mode, measured.proof, measured.complete) == ("numerical", None, True)
    assert "complete (measured in float64, gap" in str(measured)
    assert "balls" not in measured.certificate.data
    assert (proved.mode, proved.lie_dimension) == ("proved", measured.lie_dimension)
    exact = nf.completeness(nf.trace(MLP([2, 3, 1], "relu"), torch.zeros(1, 2)), balls=True)
    assert (exact.mode, exact.proof) == ("proved", None)  # modulo a prime, which needs no balls


def test_the_bound_is_proved_without_the_laws() -> None:
    """Laws left out change nothing of the upper bound; the count is then no theorem."""
    graph = graph_of("swiglu")
    _, *rest = nf.derive(graph)
    found = nf.completeness(graph, laws=rest, balls=True)
    assert (found.laws_possible, found.mode, found.complete) == (3, "proved", False)
    assert found.laws_found < 3


def test_fields_and_charges_in_balls_hold_what_float64_gives() -> None:
    for name in ("tanh", "rms_norm_eps", "attention_fused"):
        count = count_of(name)
        for level in {step[0] for step in count.growth.steps}:
            samples, _ = count.sampling.samples(level, 0, 6)
            found = enclosure(lambda state, s, c=count, k=level: c.rows(k, state, s), count.state, samples)
            measured = count.rows(level, count.state, samples)
            assert bool(((found.middle - measured).abs() <= 8 * found.radius).all())
            assert bool((found.radius < 1e-7 * found.middle.abs().max()).all())


def test_a_field_holds_its_value_by_hand_at_200_bits() -> None:
    """∇⟨w, B tanh(A x + a) + b⟩ = ((s' Bᵀw) xᵀ, s' Bᵀw, w tanhᵀ, w) with s' = 1 − tanh², in Arb alone."""
    count = count_of("tanh")
    sample, _ = count.sampling.samples(0, 0, 1)
    found = enclosure(lambda state, s: count.rows(0, state, s), count.state, sample)
    with flint.ctx.workprec(200):
        (x,), (w,) = (matrices(sample[part]) for part in ("inputs", "cotangents"))
        first, shift, second, _ = matrices(count.state)
        y = [z.tanh() for z in (first * x + shift).entries()]
        back = [v * (1 - t * t) for v, t in zip((second.transpose() * w).entries(), y, strict=True)]
        exact = [b * v for b in back for v in x.entries()] + back + [v * t for v in w.entries() for t in y] + w.entries()
        off = [(e - flint.arb(m)).abs_upper() for e, m in zip(exact, found.middle[0].tolist(), strict=True)]
        assert all(distance <= flint.arb(r) for distance, r in zip(off, found.radius[0].tolist(), strict=True))
        assert any(distance > 0 for distance in off)


def matrices(values: Mapping[str, torch.Tensor]) -> list[Any]:
    """Weights as matrices, all else as columns."""
    shaped = [x if x.dim() == 2 else x.reshape(-1, 1) for x in values.values()]
    return [flint.arb_mat([[flint.arb(v) for v in row] for row in x.tolist()]) for x in shaped]


# --- wrong siblings


@pytest.mark.parametrize("name", ["swiglu", "experts", "rms_norm_eps"])
def test_a_rank_that_is_one_too_high_cannot_be_proved(name: str) -> None:
    count = count_of(name)
    proof = prove(count)
    stated = proof.described(count)
    taken = {tuple(row) for row in stated["fields"]["rows"]}
    free = [c for c in range(count.coordinates) if c not in stated["fields"]["columns"]]
    count.growth.rank += 1
    for number, column in ((0, free[0]), (1, free[-1])):
        new = next((0, k) for k in range(number, 999) if (0, k) not in taken)
        fields = {"rows": [*stated["fields"]["rows"], list(new)], "columns": [*stated["fields"]["columns"], column]}
        with pytest.raises(NotEnclosed, match="not below 1"):
            prove(count, {**stated, "fields": fields})


def test_a_wrong_derivative_rule_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(g: Ball, y: Ball) -> Ball:
        return g * (Ball.exact(torch.ones_like(y.middle)) - y)

    monkeypatch.setitem(ball_rules.RULES, "tanh_backward", wrong)
    found = nf.completeness(graph_of("tanh"), balls=True)
    assert found.mode == "numerical"
    assert "ball_rules is wrong" in found.unproved
    assert "not proved in ball arithmetic" in str(found)


def test_a_law_that_does_not_hold_is_refuted_in_balls_too() -> None:
    (law,) = nf.derive(nf.trace(MLP([3, 4, 2], "relu"), torch.zeros(1, 3)))
    found = nf.completeness(graph_of("gelu"), laws=[law], balls=True)
    assert found.refuted == (law.name,)
    assert (found.laws_found, found.laws_possible, found.complete) == (0, 0, False)
    count = count_of("gelu")
    count.laws = Gradient().conserved(type(nf.derive(graph_of("gelu")))([law], ()))
    count.refuted.clear()
    del count.__dict__["_charges"]
    with pytest.raises(NotEnclosed, match="its ball leaves out zero"):
        prove(count)


def test_laws_given_by_hand_are_an_assumption() -> None:
    """An eps of 1e-14 breaks the scale law by less than any ball is wide: 5 of 5 laws were said to be proved, where 4 hold."""

    def graph(eps: float) -> ArchitectureGraph:
        return nf.trace(nn.Sequential(nn.Linear(3, 4, bias=False), nn.RMSNorm(4, eps=eps), nn.Linear(4, 3)), torch.zeros(2, 3))

    wrong = nf.completeness(graph(1e-14), laws=list(nf.derive(graph(0.0))), balls=True)
    right = nf.completeness(graph(1e-14), balls=True)
    assert (wrong.laws_found, right.laws_found) == (5, 4)
    assert "the laws given by hand are laws" in wrong.assumption
    assert "assumed: the laws given by hand" in str(wrong)
    assert right.assumption == ""


def test_what_balls_cannot_do_is_said() -> None:
    small = dataclasses.replace(TABLE["routed_top_1"], batch=4)
    torch.manual_seed(0)
    found = nf.completeness(small.build(), small.inputs(), loss=small.loss, balls=True)
    assert found.mode == "numerical"
    assert "its graph does not hold all" in found.unproved
    count = count_of("tanh")
    count.growth.steps.append((3, 0, 1, count.growth.rank + 1))
    with pytest.raises(NotEnclosed, match="level 3 costs too much"):
        prove(count)


def test_without_flint_balls_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(ball_functions, "import_module", missing)
    with pytest.raises(ModelError, match=r"python-flint, which is not installed.*noetherflow\[balls\]"):
        nf.completeness(graph_of("gelu"), balls=True)
    assert nf.completeness(graph_of("gelu")).complete


# --- certificates


@pytest.fixture(scope="module")
def proved() -> Completeness:
    return nf.completeness(graph_of("swiglu"), balls=True)


def test_the_certificate_says_what_was_proved_and_where(proved: Completeness) -> None:
    balls = json.loads(proved.certificate.text())["balls"]
    assert (balls["bits"], balls["fields"]["size"], balls["charges"]["size"]) == (53, 39, 3)
    assert 0 < balls["fields"]["contraction"] < 1
    point = [float.fromhex(v) for values in balls["point"].values() for v in values]
    assert len(point) == proved.parameters
    assert nf.check_certificate(Certificate.read(proved.certificate.text())).complete


def forged(proved: Completeness, **changes: Any) -> Certificate:
    return Certificate({**proved.certificate.data, "balls": {**proved.certificate.data["balls"], **changes}})


def test_a_certificate_in_balls_that_was_changed_is_refused(proved: Completeness) -> None:
    balls = proved.certificate.data["balls"]
    fields, rows, columns = balls["fields"], balls["fields"]["rows"], balls["fields"]["columns"]
    cases = {
        "not below 1": {"fields": {**fields, "rows": [rows[1], *rows[1:]]}},  # a row twice
        "as many columns as rows": {"fields": {**fields, "columns": columns[1:]}},
        "39 fields and 3 charges": {"fields": {**fields, "rows": rows[1:], "columns": columns[1:]}},
        "balls": {"point": {**balls["point"], next(iter(balls["point"])): ["0x1p+0"]}},
        "not whole": {"fields": {}},
        "numbered from 0, got '-1'": {"charges": {**balls["charges"], "rows": [-1, *balls["charges"]["rows"][1:]]}},
        "numbered from 0, got '1.5'": {"fields": {**fields, "columns": [1.5, *columns[1:]]}},
        "numbered from 0, got '1000": {"fields": {**fields, "columns": [10**400, *columns[1:]]}},
        "has drawn": {"fields": {**fields, "rows": [[0, 10**8], *rows[1:]]}},
        "differ": {"fields": {**fields, "contraction": "nan"}},
    }
    for message, changes in cases.items():
        with pytest.raises(ReportError, match=message):
            nf.check_certificate(forged(proved, **changes))
    with pytest.raises(ReportError, match="balls"):
        nf.check_certificate(forged(proved, fields={**fields, "contraction": fields["contraction"] * 1e6}))
    with pytest.raises(ReportError, match="balls"):
        nf.check_certificate(forged(proved, bits=100))
    without = {k: v for k, v in proved.certificate.data.items() if k != "balls"}
    with pytest.raises(ReportError, match="mode"):  # without the proof it is a measurement
        nf.check_certificate(Certificate(without))
    with pytest.raises(ReportError, match="was changed"):
        Certificate.read(proved.certificate.text().replace('"laws_possible": 3', '"laws_possible": 2'))
    with pytest.raises(ReportError, match="laws_possible"):
        nf.check_certificate(Certificate({**proved.certificate.data, "laws_possible": 4}))
