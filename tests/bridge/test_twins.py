"""Twins of smaller width: the same graph, counted in the network's place, and refused where they are not the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.twins import check_twin, difference, mode_of
from noetherflow.cli import main
from noetherflow.errors import GraphError, ModelError, ReportError
from noetherflow.numeric.models import MLP
from noetherflow.symbolic.graph import ArchitectureGraph


def mlp(*widths: int, activation: str = "relu", bias: bool = True) -> ArchitectureGraph:
    return nf.trace(MLP(list(widths), activation, bias=bias), torch.zeros(32, widths[0]))


class Packed(nn.Module):
    """Queries, keys and values cut from one product, heads side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(96, 3 * 128), nn.Linear(128, 96)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part.unflatten(2, (8, 16)).transpose(1, 2) for part in self.qkv(x).split(128, dim=2))
        y: Tensor = self.out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return y


class Joined(nn.Module):
    """Two branches glued, and cut again elsewhere in the order they were glued in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 100), nn.Linear(64, 30), nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(torch.cat([self.a(x), self.b(x)], 1).relu()[:, 100:])
        return y


class Residual(nn.Module):
    """ResNet's two kinds of blocks, without their norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.down, self.c = nn.Conv2d(64, 128, 1, stride=2), nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.d, self.fc = nn.Conv2d(128, 128, 3, padding=1), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.b(self.a(x).relu())).relu()
        x = (self.down(x) + self.d(self.c(x).relu())).relu()
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


NETS: dict[str, tuple[nn.Module, Tensor]] = {
    "packed heads": (Packed(), torch.zeros(2, 9, 96)),
    "glued and cut": (Joined(), torch.zeros(7, 64)),
    "grouped convolution": (
        nn.Sequential(nn.Conv2d(64, 96, 3, groups=32, padding=1), nn.GroupNorm(8, 96), nn.ReLU(), nn.Conv2d(96, 4, 1)),
        torch.zeros(2, 64, 5, 5),
    ),
    "patches": (nn.Sequential(nn.Conv2d(3, 64, 16, stride=16), nn.Flatten(2), nn.ReLU(), nn.Linear(16, 7)), torch.zeros(2, 3, 64, 64)),
    "padding row": (nn.Sequential(nn.Embedding(900, 70, padding_idx=7), nn.Linear(70, 20)), torch.zeros(2, 6, dtype=torch.long)),
    "gated recurrence": (nn.GRU(64, 128, batch_first=True), torch.zeros(4, 9, 64)),
    "slopes of channels": (nn.Sequential(nn.Linear(200, 90), nn.PReLU(90), nn.Linear(90, 40)), torch.zeros(6, 200)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_twin_has_the_graph_of_the_original_and_can_be_evaluated(name: str) -> None:
    model, inputs = NETS[name]
    twin = nf.twin(nf.trace(model, inputs))
    check_twin(twin)
    before, after = twin.parameters
    assert after < min(before / 4, 1200)
    assert mode_of(twin.graph) in ("proved", "numerical")
    assert all(1 < b <= a or a == b == 1 for shapes in twin.sizes.values() for a, b in zip(*shapes, strict=True))


def test_sizes_that_hang_together_shrink_together() -> None:
    packed = nf.twin(nf.trace(*NETS["packed heads"])).graph
    (rows, stream), (out, heads) = (packed.parameters[f"{n}.weight"].shape for n in ("qkv", "out"))
    (split,) = {d["shape"][1] * d["shape"][3] for _, d in packed.nodes(data=True) if d["operation"] == "attention"}
    assert (rows, out, split) == (3 * heads, stream, heads)
    glued = nf.twin(nf.trace(*NETS["glued and cut"])).graph
    (cut,) = (d["attributes"] for _, d in glued.nodes(data=True) if d["operation"] == "slice")
    assert (cut["start"], cut["length"]) == tuple(glued.parameters[f"{n}.weight"].shape[0] for n in "ab")
    patches = nf.twin(nf.trace(*NETS["patches"])).graph
    (node,) = (d for _, d in patches.nodes(data=True) if d["operation"] == "convolution")
    kernel = list(patches.parameters["0.weight"].shape[2:])
    assert node["attributes"]["stride"] == kernel
    assert max(kernel) < 16


def test_a_large_perceptron_is_counted_for_its_twin_and_the_certificate_says_so(tmp_path: Path) -> None:
    found = nf.completeness(mlp(784, 512, 256, 10))
    assert (found.complete, found.mode) == (True, "proved")
    assert found.twin is not None
    assert found.twin.parameters == (535_818, found.parameters)
    inner = [found.twin.sizes[f"layers.{i}.bias"][1][0] for i in (0, 1)]
    assert found.laws_found == sum(inner)
    assert "twin of smaller width (535,818 parameters" in found.assumption
    assert "512 -> " in str(found)
    saved = Certificate.load(found.certificate.save(tmp_path / "twin.json"))
    assert saved.data["twin"]["shapes"]["layers.0.bias"] == [[512], [inner[0]]]
    again = nf.check_certificate(saved)
    assert again.twin is not None
    assert again.twin.described() == saved.data["twin"]
    false = dict(saved.data) | {"twin": dict(saved.data["twin"]) | {"original": mlp(784, 512, 256, 10, activation="tanh").to_json()}}
    with pytest.raises(ReportError, match="no twin of the one it names: 'relu' of the twin"):
        nf.check_certificate(Certificate(false))


@pytest.mark.nightly
def test_a_residual_convolutional_network_of_real_width_is_proved_for_its_twin() -> None:
    found = nf.completeness(Residual(), torch.zeros(8, 3, 8, 8))
    assert (found.complete, found.mode, found.laws_found) == (True, "proved", 23), found
    assert "twin of smaller width (306,698 parameters" in found.assumption


def test_a_llama_of_real_width_is_counted_with_tables_that_its_graph_does_not_hold() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=1, num_key_value_heads=8)).eval()
        tokens = torch.zeros(2, 8, dtype=torch.long)
    found = nf.completeness(model, tokens, kwargs={"use_cache": False}, without_eps=True)
    assert found.complete, found
    assert "439,365,632 parameters" in found.assumption
    assert found.assumption.endswith("with a causal mask, rotary angles")


def test_a_small_network_is_counted_for_a_twin_if_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import torch\nfrom torch import nn\n\ndef net():\n    return nn.Linear(30, 20), torch.zeros(1, 30)\n")
    for flags, said in (([], False), (["--twin"], True)):
        assert main(["completeness", f"{file}:net", *flags]) == 0
        assert ("twin of smaller width (620 parameters" in capsys.readouterr().out) is said


# --- refused


def test_families_that_differ_are_named() -> None:
    relu, linear = (nf.symmetries(mlp(6, 4, 3, activation=a)) for a in ("relu", "linear"))
    assert difference(relu, nf.symmetries(mlp(600, 400, 300))) == ""
    said = difference(relu, linear)
    assert "of the original are not in the twin, such as rescale of layers.0.weight" in said
    assert "of the twin are not in the original, such as linear of layers.0.weight" in said
    deep, wide = (nf.symmetries(mlp(*widths, activation="linear", bias=False)) for widths in ((6, 4, 6), (3, 9, 3)))
    assert "linear of layers.0.weight, layers.1.weight" in difference(deep, wide)


def test_what_can_be_counted_exactly_is_not_made_smaller() -> None:
    """Above the limit in float64 and below that of exact arithmetic the network itself is counted."""
    linear = mlp(30, 22, 30, activation="linear", bias=False)
    assert (mode_of(linear), mode_of(mlp(30, 22, 30, activation="gelu"))) == ("proved", "numerical")
    found = nf.completeness(linear)
    assert (found.twin, found.parameters, found.laws_possible, found.complete) == (None, 1320, 22 * 23 // 2, True)


def test_another_network_is_no_twin() -> None:
    twin = nf.twin(mlp(60, 40, 30))
    assert twin.given == {}
    twin.graph.nodes["relu"]["operation"] = "tanh"
    with pytest.raises(GraphError, match="'relu' of the twin is not what it is in the original"):
        check_twin(twin)


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (nn.Conv1d(64, 64, 2000), torch.zeros(1, 64, 2001), r"narrowest twin .* still has 8,0\d\d trainable parameters"),
        (nn.LSTM(64, 128, batch_first=True), torch.zeros(4, 9, 64), r"getitem_2, whose operation is not known"),
    ],
)
def test_what_has_no_twin_is_said(model: nn.Module, inputs: Tensor, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        nf.completeness(model, inputs)


def test_laws_given_by_hand_have_no_twin() -> None:
    graph, options = mlp(6, 4, 3), dict[str, Any](twin=True)
    with pytest.raises(ModelError, match="sizes of the network"):
        nf.completeness(graph, laws=nf.derive(graph), **options)
