"""The number of conservation laws: proved for polynomial networks, measured for others, and refused or refuted where something is wrong."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sympy as sp
import torch
from support.block_cases import BLOCK_CASES
from support.cases import CASES, Block, Case
from torch import nn

import noetherflow as nf
from noetherflow.bridge import completeness as completeness_module
from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.evaluation import Unevaluable
from noetherflow.bridge.law_verdict import Completeness
from noetherflow.cli import main
from noetherflow.errors import ModelError, ReportError
from noetherflow.numeric.lie_rank import NotFinite
from noetherflow.numeric.models import MLP
from noetherflow.symbolic.graph import ArchitectureGraph

TABLE = {case.name: case for case in (*CASES, *BLOCK_CASES)}


def mlp(*widths: int, activation: str = "relu", bias: bool = True) -> ArchitectureGraph:
    return nf.trace(MLP(list(widths), activation, bias=bias), torch.zeros(1, widths[0]))


def count(case: Case, **options: object) -> Completeness:
    torch.manual_seed(0)
    small = dataclasses.replace(case, batch=4)
    return nf.completeness(small.build(), small.inputs(), loss=small.loss, **options)


# --- proved


@pytest.mark.parametrize("number", range(8))
def test_random_linear_networks_have_the_derived_laws_only(number: int) -> None:
    draw = random.Random(number)
    found = nf.completeness(mlp(*(draw.randint(2, 5) for _ in range(draw.randint(3, 5))), activation="linear", bias=False))
    assert found.complete, found
    assert (found.mode, found.assumption) == ("proved", "")


@pytest.mark.parametrize("number", range(8))
def test_random_relu_networks_have_one_law_per_hidden_unit(number: int) -> None:
    draw = random.Random(number)
    widths = [draw.randint(2, 9) for _ in range(draw.randint(3, 5))]
    found = nf.completeness(mlp(*widths, bias=draw.random() < 0.5))
    assert found.complete, found
    assert found.mode == "proved"
    assert found.laws_found == found.laws_possible == sum(widths[1:-1])


def pair(n: int, r: int, m: int) -> ArchitectureGraph:
    graph = ArchitectureGraph()
    graph.add_parameter("first", (r, n))
    graph.add_parameter("second", (m, r))
    graph.add_operation("x", "input", shape=(1, n))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "first"}, shape=(1, r))
    graph.add_operation("y", "linear", {"input": "h"}, {"weight": "second"}, shape=(1, m))
    return graph


@pytest.mark.parametrize("total", range(2, 13))
def test_two_linear_layers_follow_the_formula_for_every_shape_up_to_six(total: int) -> None:
    for n in range(max(1, total - 6), total // 2 + 1):
        for r in range(1, 7):
            found = nf.completeness(pair(n, r, total - n))
            laws = r * (r + 1) // 2 if r <= total else total * r - total * (total - 1) // 2
            assert (found.laws_found, found.laws_possible, found.complete) == (laws, laws, True), (n, r, total - n)


POLYNOMIAL = {
    "conv_relu_pool_conv": 3,
    "conv_pool_conv": 6,
    "grouped_conv": 8,
    "residual_relu": 9,
    "tied_relu_mlp": 4,
    "frozen_middle": 1,
    "leaky_relu_mlp": 5,
    "dropout_between_linear": 3,
    "relu_gate": 6,
    "linear_shared_twice": 7,
    "tied_by_transposition": 0,
    "linear_pair_cross_entropy": 5,
    "tables_multiplied_with_head": 24,
    "low_rank_on_frozen_dropout": 6,
    "attention_linear": 14,
}


@pytest.mark.parametrize("name", POLYNOMIAL)
def test_blocks_that_are_polynomials_are_proved_without_assumption(name: str) -> None:
    found = count(TABLE[name])
    assert (found.laws_found, found.laws_possible, found.complete) == (POLYNOMIAL[name], POLYNOMIAL[name], True)
    assert (found.mode, found.assumption, found.gap) == ("proved", "", torch.inf)
    assert found.parameters == found.laws_found + found.lie_dimension


def test_attention_without_softmax_is_a_polynomial() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(i, o, bias=False) for i, o in ((3, 2), (3, 2), (3, 2), (2, 3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.o(self.q(x) @ self.k(x).mT @ self.v(x))

    found = nf.completeness(Linear(), torch.zeros(1, 4, 3))
    assert (found.laws_found, found.complete, found.mode) == (3 + 3 + 1, True, "proved")  # QQ' - KK', VV' - O'O, |Q|² - |V|²


UPSAMPLED: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "relu": (nn.Sequential(nn.ConvTranspose1d(2, 3, 2, stride=2), nn.ReLU(), nn.Conv1d(3, 2, 2)), (2, 3), 3),
    "linear": (nn.Sequential(nn.Conv1d(2, 3, 2, bias=False), nn.ConvTranspose1d(3, 4, 2, stride=2, bias=False)), (2, 3), 6),
    "images": (
        nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(3, 1, 2, bias=False)),
        (2, 3, 3),
        3,
    ),
}


@pytest.mark.parametrize("name", UPSAMPLED)
def test_transposed_convolutions_are_counted_exactly(name: str) -> None:
    model, shape, laws = UPSAMPLED[name]
    found = nf.completeness(model, torch.zeros(1, *shape))
    assert (found.laws_found, found.laws_possible, found.complete, found.mode) == (laws, laws, True, "proved")
    assert found.assumption == ""


def test_a_law_of_a_plain_convolution_is_refuted_by_a_transposed_one() -> None:
    """Behind a ReLU a unit is an input channel of the next weight: its first axis where the convolution is transposed."""
    plain, transposed = (nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), kind(3, 3, 2)) for kind in (nn.Conv1d, nn.ConvTranspose1d))
    (law,) = nf.derive(nf.trace(plain, torch.zeros(1, 2, 5)))
    found = nf.completeness(transposed, torch.zeros(1, 2, 5), laws=[law])
    assert found.refuted == (law.name,)
    assert (found.laws_found, found.laws_possible) == (0, 3)


def test_free_pieces_are_said_to_be_assumed() -> None:
    """A layer of one unit behind another without biases is always open or always shut at any one point."""
    found = nf.completeness(mlp(2, 1, 1, 2, bias=False))
    assert (found.laws_found, found.complete) == (2, True)
    assert "path-lifting" in found.assumption


# --- measured


SMOOTH = {
    "swiglu": 3,
    "attention_fused": 12,
    "attention_with_biases": 16,
    "attention_rotary": 24,
    "llama": 20,
    "tanh_mlp": 0,
    "lstm": 14,
    "experts": 10,
    "bn_pool_linear": 6,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_blocks_are_measured_at_two_points(name: str) -> None:
    found = count(TABLE[name], without_eps=True)
    assert (found.laws_found, found.laws_possible, found.complete) == (SMOOTH[name], SMOOTH[name], True)
    assert found.mode == "numerical"
    assert found.gap >= 1e10
    assert len({p["seed"] for p in found.certificate.data["points"]}) == 2


RECURRENT: dict[str, tuple[nn.Module, int, str]] = {  # biases of a gate read together: b + c; behind a ReLU one scale a unit more
    "lstm": (nn.LSTM(2, 3), 4 * 3, "numerical"),
    "lstm, both directions": (nn.LSTM(2, 2, bidirectional=True, batch_first=True), 2 * 4 * 2, "numerical"),
    "gru": (nn.GRU(2, 3), 2 * 3, "numerical"),
    "tanh": (nn.RNN(2, 3), 3, "numerical"),
    "relu, two layers": (nn.RNN(2, 2, num_layers=2, nonlinearity="relu"), 2 * 2, "proved"),  # all its units are seen at the end
    "relu behind a head": (
        Block(lambda s, x: s.head(s.layer(x)[0]), layer=nn.RNN(2, 2, nonlinearity="relu"), head=nn.Linear(2, 3)),
        4,
        "proved",
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_module_by_itself_is_counted_with_all_that_it_returns(name: str) -> None:
    model, laws, mode = RECURRENT[name]
    found = nf.completeness(model, torch.zeros(4, 3, 2))
    assert (found.laws_found, found.laws_possible, found.complete, found.mode) == (laws, laws, True, mode), found
    assert nf.check_certificate(found.certificate).complete


def test_a_law_of_an_lstm_with_a_wrong_sign_is_refuted() -> None:
    graph = nf.trace(nn.LSTM(2, 3), torch.zeros(4, 3, 2))
    law = next(iter(nf.derive(graph)))
    first, *others = law.symmetry.actions
    actions = (dataclasses.replace(first, weight=-first.weight), *others)
    false = dataclasses.replace(law, symmetry=dataclasses.replace(law.symmetry, actions=actions))
    assert nf.completeness(graph, laws=[law]).refuted == ()
    assert nf.completeness(graph, laws=[false]).refuted == (law.name,)


def test_a_module_that_torch_cannot_differentiate_often_enough_is_refused_with_its_operation() -> None:
    with pytest.raises(Unevaluable, match=r"differentiated often enough: .*lstm"):
        nf.completeness(nn.LSTM(2, 3, proj_size=2), torch.zeros(4, 3, 2))


def test_gelu_has_no_law_at_all() -> None:
    found = nf.completeness(mlp(3, 4, 2, activation="gelu"))
    assert (found.laws_found, found.laws_possible, found.complete) == (0, 0, True)


def test_laws_that_eps_breaks_are_none_until_eps_is_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.RMSNorm(4, eps=0.1, elementwise_affine=False), nn.Linear(4, 2, bias=False))
    kept, bare = (nf.completeness(model, torch.zeros(2, 3), without_eps=w) for w in (False, True))
    assert (kept.laws_found, kept.laws_possible, kept.complete) == (0, 0, True)
    assert kept.broken == ("scale 0.weight",)
    assert (bare.laws_found, bare.laws_possible, bare.complete, bare.broken) == (1, 1, True, ())


LIVE = {"routed_top_1": 10, "routed_gelu": 4, "routed_linear": 13}


@pytest.mark.parametrize("name", LIVE)
def test_modules_whose_graph_does_not_hold_enough_are_run(name: str) -> None:
    torch.manual_seed(0)
    small = dataclasses.replace(TABLE[name], batch=4)
    graph = nf.trace(small.build(), small.inputs(), loss=small.loss)
    found = count(TABLE[name], without_eps=True)
    assert (found.laws_found, found.laws_possible, found.complete) == (LIVE[name], LIVE[name], True)
    with pytest.raises(Unevaluable):
        nf.completeness(graph)
    with pytest.raises(ReportError, match="the module itself must be run"):
        nf.check_certificate(found.certificate)
    again = nf.check_certificate(Certificate.read(found.certificate.text()), small.build(), small.inputs())
    assert again.complete
    forged = Certificate({**found.certificate.data, "laws_possible": found.laws_possible + 1})
    with pytest.raises(ReportError, match="laws_possible"):
        nf.check_certificate(forged, small.build(), small.inputs())
    with pytest.raises(ReportError, match=r"another module than Sequential: its parameter '0.bias' is not there in the certificate"):
        nf.check_certificate(found.certificate, nn.Sequential(nn.Linear(4, 4)), small.inputs())


POST_NORM = {"tokens.weight"} | {
    f"attentions.0.{n}" for n in ("k.weight", "o.bias", "o.weight", "q.bias", "q.weight", "v.bias", "v.weight")
}
# Laws of the two tables of cases that are not derived: how many, and in which parameters.
MISSING: dict[str, tuple[int, set[str]]] = {
    "two_heads_cross_entropy": (4, {"a.weight", "b.weight"}),  # the shift of both heads at once
    "attention_relative_causal": (20, {"relative"}),  # entries that the mask hides
    "routed_to_the_next_behind": (4, {"down", "up"}),  # one unit of each expert more: what depends on e is not undone at e + 1
    "post_norm_layer_norm": (1, POST_NORM),  # |E 1|² - |Q 1|² - |K 1|² - |V 1|² of a stream that is read before its first norm
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", TABLE)
def test_every_small_architecture_has_the_derived_laws_and_no_others_but_for_those_named(name: str) -> None:
    found = count(TABLE[name], without_eps=True)
    number, places = MISSING.get(name, (0, set[str]()))
    assert not found.refuted
    assert found.laws_possible - found.laws_found == len(found.missing) == number, found
    assert found.complete == (name not in MISSING), found
    assert {parameter for direction in found.missing for parameter in direction} == places
    listed = found.certificate.data.get("missing", [])
    assert (len(listed), {parameter for one in listed for parameter in one["parameters"]}) == (number, places)


def test_every_row_of_the_tables_of_cases_is_counted() -> None:
    assert len(TABLE) == len(CASES) + len(BLOCK_CASES)
    assert MISSING.keys() <= TABLE.keys()


def test_the_missing_directions_stand_in_the_certificate() -> None:
    found = count(TABLE["two_heads_cross_entropy"])
    listed = found.certificate.data["missing"]
    assert [one["parameters"] for one in listed] == [["a.weight", "b.weight"]] * 4
    assert all("a.weight[" in one["at"] for one in listed)
    assert nf.check_certificate(found.certificate).certificate.data["missing"] == listed
    assert "missing" not in count(TABLE["relu_gate"]).certificate.data
    for false in (listed[1:], [{**listed[0], "parameters": ["b.weight"]}, *listed[1:]]):
        with pytest.raises(ReportError, match="missing"):
            nf.check_certificate(Certificate({**found.certificate.data, "missing": false}))
    measured = count(TABLE["attention_relative_causal"]).certificate
    assert nf.check_certificate(measured).certificate.data["missing"]
    with pytest.raises(ReportError, match="missing"):
        nf.check_certificate(Certificate({**measured.data, "missing": [{"parameters": ["q.weight"], "at": "q.weight"}] * 20}))


# --- wrong siblings


def test_a_law_taken_away_is_missed_and_named() -> None:
    graph = mlp(3, 4, 3, 2)
    first, *rest = nf.derive(graph)
    found = nf.completeness(graph, laws=rest)
    assert not found.complete
    assert found.laws_possible - found.laws_found == len(found.missing) == first.count
    places = {tuple(direction) for direction in found.missing}
    assert places == {("layers.0.weight", "layers.0.bias", "layers.1.weight")}
    for direction in found.missing:  # one unit each: its row, its bias, its column
        (unit,) = direction["layers.0.bias"].nonzero().flatten().tolist()
        assert direction["layers.0.weight"].abs().sum(1).nonzero().flatten().tolist() == [unit]
        assert direction["layers.1.weight"].abs().sum(0).nonzero().flatten().tolist() == [unit]
    assert "layers.0.weight" in str(found)


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_a_law_with_a_wrong_sign_is_refuted(activation: str) -> None:
    graph = mlp(3, 4, 2, activation=activation)
    (law,) = (law for law in nf.derive(graph) if law.count)
    first, *others = law.symmetry.actions
    wrong = dataclasses.replace(first, weight=-first.weight) if activation == "relu" else dataclasses.replace(first, weight=sp.Integer(-1))
    false = dataclasses.replace(law, symmetry=dataclasses.replace(law.symmetry, actions=(wrong, *others)))
    found = nf.completeness(graph, laws=[false])
    assert found.refuted == (false.name,)
    assert (found.laws_found, found.complete) == (0, False)
    assert found.laws_possible == law.count


def test_a_smooth_network_refutes_a_law_of_its_piecewise_sibling() -> None:
    (law,) = nf.derive(mlp(3, 4, 2))
    found = nf.completeness(mlp(3, 4, 2, activation="gelu"), laws=[law])
    assert found.refuted == (law.name,)
    assert (found.laws_found, found.laws_possible, found.complete) == (0, 0, False)


def test_a_known_gap_is_found_with_its_place() -> None:
    """Two heads under one cross-entropy: the shift of both at once is a law that is not derived."""
    found = count(TABLE["two_heads_cross_entropy"])
    assert (found.laws_found, found.laws_possible, found.complete) == (5, 9, False)
    assert {tuple(direction) for direction in found.missing} == {("a.weight", "b.weight")}
    assert all(torch.unique(piece[piece != 0]).tolist() == [1.0] for direction in found.missing for piece in direction.values())


def test_a_cross_entropy_sees_less_than_a_square() -> None:
    model = MLP([3, 4, 3])
    squares, entropy = (nf.completeness(model, torch.zeros(1, 3), loss=loss) for loss in ("mse", "cross_entropy"))
    assert (squares.laws_found, entropy.laws_found) == (4, 4 + 4 + 1)
    assert squares.complete
    assert entropy.complete


# --- certificates

MODULE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2)

def normed():
    return nn.Sequential(nn.Linear(2, 3), nn.RMSNorm(3, eps=0.1), nn.Linear(3, 2)), torch.zeros(1, 2)
"""


def test_certificates_are_computed_again_in_a_fresh_process(tmp_path: Path) -> None:
    """One modulo a prime, and one in balls."""
    file = tmp_path / "mine.py"
    file.write_text(MODULE)
    polynomial, smooth = tmp_path / "deep" / "certificate.json", tmp_path / "balls.json"
    assert main(["completeness", f"{file}:net", "--certificate", str(polynomial)]) == 0
    assert main(["completeness", f"{file}:normed", "--balls", "--certificate", str(smooth)]) == 0
    file.unlink()
    check = "import sys; from noetherflow.cli import main; print([main(['completeness', '--check', file]) for file in sys.argv[1:]])"
    again = subprocess.run([sys.executable, "-c", check, str(polynomial), str(smooth)], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 laws: complete (proved)" in again.stdout
    assert "3 of 3 laws: complete (proved in ball arithmetic" in again.stdout
    assert again.stdout.endswith("[0, 0]\n")


LIVE_MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, dim, hidden=3):
        super().__init__()
        self.dim, self.first, self.last = dim, nn.Linear(2, hidden), nn.Linear(hidden, 2)

    def forward(self, x):
        return self.last(self.first(x).cumsum(self.dim).roll(1, 1).relu())

def net():
    return Net(1), torch.zeros(1, 2)

def wider():
    return Net(1, 4), torch.zeros(1, 2)

def batch():
    return Net(1), torch.zeros(5, 2)
"""


def test_a_certificate_of_a_module_that_is_run_is_checked_on_the_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, certificate = tmp_path / "live.py", tmp_path / "live.json"
    file.write_text(LIVE_MODULE)
    status = main(["completeness", f"{file}:net", "--certificate", str(certificate)])
    data = Certificate.load(certificate).data
    assert data["evaluated"] == "module"
    check = ["completeness", "--check", str(certificate)]
    assert main([*check, "--model", f"{file}:net"]) == status
    assert "The certificate holds" in capsys.readouterr().out
    refused = {
        (): "Give it: --model FILE.py:FUNCTION",
        ("--model", f"{file}:wider"): "'first.bias' is (3,) in the certificate, and (4,) in the module",
        ("--model", f"{file}:batch"): "their graphs differ at",
        ("--model", f"{file}:nothing"): "must return (model, inputs)",
        ("--model", f"{file}:net", "--friction", "1"): "Leave --metric and --friction out",
    }
    for more, said in refused.items():
        assert main([*check, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_certificate_can_be_held_against_a_module_that_need_not_be_run() -> None:
    models = [nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3, eps=eps), nn.Linear(3, 1)) for eps in (1e-5, 1e-3)]
    certificate = nf.completeness(models[0], torch.zeros(1, 2), loss="mse").certificate
    assert nf.check_certificate(certificate, models[0], torch.zeros(1, 2)).certificate.data["laws_found"] == certificate.data["laws_found"]
    with pytest.raises(ReportError, match="their graphs differ at"):
        nf.check_certificate(certificate, models[1], torch.zeros(1, 2))


# --- flows on the command line

PAIR = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), torch.zeros(1, 2)
"""


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--friction", "2"], {"friction": 2}),
        (["--metric", "natural"], {"metric": nf.metrics.Natural()}),
        (["--metric", "x*log(x)"], {"metric": nf.metrics.Mirror(nf.metrics.ARGUMENT * sp.log(nf.metrics.ARGUMENT))}),
        (["--metric", "0.weight=x**2"], {"metric": nf.metrics.Mirror(nf.metrics.ARGUMENT**2 / 2, {"0.weight": nf.metrics.ARGUMENT**2})}),
    ],
)
def test_the_command_line_counts_along_the_flow_that_it_is_told(
    flags: list[str], options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, certificate = tmp_path / "pair.py", tmp_path / "pair.json"
    file.write_text(PAIR)
    status = main(["completeness", f"{file}:net", *flags, "--certificate", str(certificate)])
    namespace: dict[str, Any] = {}
    exec(PAIR, namespace)
    found = nf.completeness(*namespace["net"](), **options)
    assert status == (0 if found.complete else 1)
    assert str(found).splitlines()[0] in capsys.readouterr().out
    assert Certificate.load(certificate).data["flow"] == found.certificate.data["flow"]
    assert main(["completeness", "--check", str(certificate)]) == status


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--metric", "adam"], "expects 'natural', a potential, or PARAMETER=POTENTIAL. 'adam' is no potential in x"),
        (["--metric", "w=x**2"], "names ['w'], which the network does not have; its parameters are ['0.weight', '1.weight']"),
        (["--metric", "natural", "--metric", "x**2"], "stands alone"),
        (["--metric", "x**2", "--metric", "x**4"], "one potential for all parameters"),
        (["--metric", "x**2", "--friction", "1"], "Give a metric or a friction"),
        (["--model", "some.py:net"], "--model is for --check"),
    ],
)
def test_flows_that_cannot_be_are_said(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pair.py"
    file.write_text(PAIR)
    assert main(["completeness", f"{file}:net", *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "much"])
def test_a_friction_that_is_no_positive_integer_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["completeness", "resnet18", f"--friction={number}"])
    assert stopped.value.code == 2
    assert f"expected an integer of at least 1, got '{number}'" in capsys.readouterr().err


def test_help_says_along_which_flows_laws_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completeness", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(part in said for part in ("--friction N", "--metric METRIC", "PARAMETER=POTENTIAL", "--model MODEL"))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_certificate_that_was_changed_does_not_hold(activation: str) -> None:
    certificate = nf.completeness(mlp(2, 3, 2, activation=activation)).certificate
    assert nf.check_certificate(Certificate.read(certificate.text())).complete
    data = json.loads(certificate.text())
    for key, value in (("laws_possible", 7), ("complete", False), ("parameters", 18), ("assumption", "none at all")):
        with pytest.raises(ReportError, match="was changed"):
            Certificate.read(json.dumps({**data, key: value}))
        forged = Certificate({**certificate.data, key: value})  # with a new digest
        with pytest.raises(ReportError, match=key):
            nf.check_certificate(Certificate.read(forged.text()))
    points = [{**p, "charges": 1} for p in certificate.data["points"]]
    with pytest.raises(ReportError, match="points"):
        nf.check_certificate(Certificate({**certificate.data, "points": points}))
    other = mlp(2, 4, 2, activation=activation).to_json()
    with pytest.raises(ReportError, match="does not hold"):
        nf.check_certificate(Certificate({**certificate.data, "graph": other}))


def test_certificates_that_cannot_be_checked_say_why(tmp_path: Path) -> None:
    graph = mlp(2, 3, 2)
    by_hand = nf.completeness(graph, laws=list(nf.derive(graph))).certificate
    with pytest.raises(ReportError, match="by hand"):
        nf.check_certificate(by_hand)
    with pytest.raises(ReportError, match="not a certificate"):
        Certificate.read("{}")
    with pytest.raises(ReportError, match="cannot be read"):
        Certificate.load(tmp_path / "nothing.json")
    with pytest.raises(ReportError, match="format 0"):
        Certificate.read(Certificate({"format": 0}).text())


# --- what cannot be counted


def test_what_cannot_be_counted_is_said() -> None:
    with pytest.raises(ModelError, match=r"30,000 trainable parameters.*smaller widths"):
        nf.completeness(mlp(100, 150, 100, activation="linear", bias=False), twin=False)
    with pytest.raises(ModelError, match=r"in float64: 'gelu' is no polynomial"):
        nf.completeness(mlp(40, 40, 10, activation="gelu"), twin=False)
    symbolic = ArchitectureGraph()
    symbolic.add_parameter("w", (sp.Symbol("n"), 3))
    with pytest.raises(ModelError, match="symbolic sizes"):
        nf.completeness(symbolic)
    with pytest.raises(Unevaluable, match="cumprod"):
        nf.completeness(nf.trace(nn.Sequential(nn.Linear(3, 3), Cumulated()), torch.zeros(2, 3)))


class Cumulated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumprod(1)


def test_a_point_where_a_field_has_no_value_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variance may be zero at one point, without eps; where it is zero at all of them, that is said."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(1, 3)
    whole, visited = completeness_module.counted, list[str]()

    def broken(sampling: Any, *rest: Any) -> Any:
        if sampling.prime:
            return whole(sampling, *rest)
        visited.append(sampling.seed)
        if len(visited) == 1 or not passing:
            raise NotFinite("Brackets of gradient fields are not finite at a random point.")
        return whole(sampling, *rest)

    monkeypatch.setattr(completeness_module, "counted", broken)
    passing = True
    found = nf.completeness(model, x)
    assert found.complete
    assert len(visited) == 3
    passing = False
    with pytest.raises(ModelError, match="not finite"):
        nf.completeness(model, x)


# --- theorems that were none


class Cancelled(nn.Module):
    """z = (F h + h) − F h − h − c²/1024 is never positive; in float64, with a large F, it is anything."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.b = (nn.Linear(m, n, bias=False) for m, n in ((3, 4), (3, 4), (4, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = self.a(x), self.c(x)
        large = h * 2.0**50
        return self.b(torch.relu(((large + h) - large) - h - c * c * 2.0**-10))


def test_pieces_that_only_rounding_opens_are_not_taken() -> None:
    """The network is zero for every input, so that all 32 parameters are conserved; 16 were said to be all, and that this was proved."""
    found = nf.completeness(nf.trace(Cancelled(), torch.zeros(2, 3)))
    assert "every pattern of ReLUs" in found.assumption


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) * (10**12 + 7))


def test_a_large_whole_factor_refutes_no_law() -> None:
    found = nf.completeness(nf.trace(Scaled(), torch.zeros(1, 2)))
    assert (found.laws_found, found.laws_possible, found.refuted, found.complete) == (6, 6, (), True)


def test_certificates_of_other_arithmetic_are_refused() -> None:
    certificate = nf.completeness(mlp(2, 3, 2)).certificate
    (point,) = certificate.data["points"]
    cases: dict[str, dict[str, object]] = {
        "modulo 2147483647": {"points": [{**point, "prime": 2**31 - 1}]},  # products would not be exact
        "modulo 6": {"points": [{**point, "prime": 6}]},
        "modulo True": {"points": [{**point, "prime": True}]},
        "'Free' pieces": {"points": [{**point, "gates": "Free"}]},
        "2 points, 1 of them different": {"points": [point, point]},
        "0 points": {"points": []},
        "theorem": {"theorem": "there are no other laws"},
        "'parameters'": {"parameters": float(certificate.data["parameters"])},
        "not whole": {"graph": certificate.data["graph"].replace('"dtype": "float32"', '"dtype": 1.5')},
        "without balls": {"balls": {"fields": {}, "charges": {}}},
    }
    for message, changes in cases.items():
        with pytest.raises(ReportError, match=message):
            nf.check_certificate(Certificate({**certificate.data, **changes}))
    text = certificate.text()
    for broken in (text.replace('"format": 1', '"laws_possible": 2, "format": 1'), '{"format": ' + "1" * 5000 + "}", "[" * 100_000):
        with pytest.raises(ReportError, match="not a certificate"):
            Certificate.read(broken)


@pytest.mark.parametrize("lowered", [0, 1])
def test_a_point_that_leaves_room_for_more_contradicts_nothing(monkeypatch: pytest.MonkeyPatch, lowered: int) -> None:
    """The rank at a point, lower where a unit is dead, is a lower bound of the generic one: the other point speaks."""
    whole, visited = completeness_module.counted, list[str]()

    def counted(sampling: Any, *rest: Any) -> Any:
        count = whole(sampling, *rest)
        visited.append(sampling.seed)
        count.growth.rank -= int(len(visited) == lowered + 1)
        return count

    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(1, 3)
    monkeypatch.setattr(completeness_module, "counted", lambda s, *rest: whole(s, *rest) if s.prime else counted(s, *rest))
    found = nf.completeness(model, x)
    assert (found.complete, found.laws_possible, found.laws_found, len(visited)) == (True, 0, 0, 2)


@pytest.mark.parametrize("unclear", [(1e9,), (1e9, 1e9, 1e9, 1e9)], ids=["once", "always"])
def test_a_count_without_a_clear_gap_is_not_complete(monkeypatch: pytest.MonkeyPatch, unclear: tuple[float, ...]) -> None:
    """Counts meet at every point; where no spectrum has a clear gap that is no evidence, and the gap is told as it is."""
    whole, gaps = completeness_module.counted, list(unclear)

    def counted(sampling: Any, *rest: Any) -> Any:
        count = whole(sampling, *rest)
        if gaps and not sampling.prime:
            count.space.gap = gaps.pop()
        return count

    monkeypatch.setattr(completeness_module, "counted", counted)
    found = nf.completeness(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(1, 3))
    assert found.laws_found == found.laws_possible == 0
    assert found.complete == (len(unclear) == 1)
    assert (found.gap == 1e9) == (len(unclear) > 1)
    assert ("not complete" in str(found)) == (len(unclear) > 1)
