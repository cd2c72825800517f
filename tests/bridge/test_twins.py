"""Twins of smaller width: the same graph, counted in the network's place, and refused where they are not the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.attention import Attention
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.constant_values import LOWEST
from noetherflow.bridge.twins import Twin, check_twin, difference, mode_of
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
    "recurrence with memories": (nn.LSTM(64, 40, batch_first=True), torch.zeros(4, 9, 64)),
    "plain recurrence": (nn.RNN(64, 128), torch.zeros(4, 9, 64)),
    "plain recurrence with pieces": (nn.RNN(64, 128, nonlinearity="relu"), torch.zeros(4, 9, 64)),
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


@pytest.mark.nightly
def test_a_resnet_of_real_width_is_counted_for_its_twin() -> None:
    """33 × 33 is the smallest image that leaves the last stage more than one pixel: at 28 × 28 most of its kernels never move."""
    model = nf.models.build("resnet18", seed=0)
    found = nf.completeness(model, torch.zeros(2, 1, 33, 33), twin=True, without_eps=True)
    assert (found.complete, found.laws_found, found.parameters) == (True, 70, 772), found
    assert "(11,175,370 parameters become 772)" in found.assumption


def test_a_llama_of_real_width_is_counted_with_its_own_mask_and_angles_that_its_graph_does_not_hold() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=1, num_key_value_heads=8)).eval()
        tokens = torch.zeros(2, 8, dtype=torch.long)
    found = nf.completeness(model, tokens, kwargs={"use_cache": False}, without_eps=True)
    assert found.complete, found
    assert "439,365,632 parameters" in found.assumption
    assert found.assumption.endswith("with rotary angles")
    assert found.twin is not None
    assert masks_of(found.twin.graph) == [torch.ones(2, 1, 4, 4).tril().bool().tolist()]


class Masked(nn.Module):
    """Attention under a mask that the module makes or holds, or that is an input."""

    def __init__(self, mask: Tensor | None, *, filled: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(i, o, bias=False) for i, o in ((48, 40), (48, 40), (48, 40), (40, 48)))
        self.register_buffer("mask", mask)
        self.filled = filled

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        mask = self.mask if given is None else given[:, None, :].expand(-1, x.shape[1], -1) > 0
        if not self.filled:
            return self.o(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), attn_mask=mask))
        scores = self.q(x) @ self.k(x).mT
        return self.o(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ self.v(x))


def masks_of(graph: ArchitectureGraph) -> list[Any]:
    """What attention of a twin sees, node by node."""
    held = [d["attributes"]["value"] for n, d in graph.nodes(data=True) if d["operation"] == "constant" and "mask" in [*slots(graph, n)]]
    return held + [d["attributes"]["mask"]["entries"] for _, d in graph.nodes(data=True) if d["operation"] == "masked"]


def slots(graph: ArchitectureGraph, node: str) -> list[str]:
    return [slot for _, _, slot in graph.out_edges(node, keys=True)]


EVERY = torch.ones(9, 9, dtype=torch.bool)
BANDED = EVERY.tril().triu(-1)


@pytest.mark.parametrize("mask", [None, EVERY, EVERY.tril(), torch.full((9, 9), -torch.inf).triu(1), BANDED])
def test_the_mask_of_a_twin_is_the_original_s(mask: Tensor | None) -> None:
    twin = nf.twin(nf.trace(Masked(mask), torch.zeros(2, 9, 48)))
    expected = (
        [] if mask is None else [mask[:4, :4].tolist() if mask.dtype == torch.bool else mask[:4, :4].double().clamp(min=LOWEST).tolist()]
    )
    assert masks_of(twin.graph) == expected
    assert twin.given == ({"b_mask": "its own constants, cut to size"} if mask is BANDED else {})
    check_twin(twin)


@pytest.mark.parametrize("mask", [EVERY, EVERY.tril(), BANDED])
def test_the_entries_that_a_twin_fills_are_the_original_s(mask: Tensor) -> None:
    twin = nf.twin(nf.trace(Masked(mask, filled=True), torch.zeros(2, 9, 48)))
    (hidden,) = masks_of(twin.graph)
    assert torch.equal(torch.tensor(hidden).expand(2, 4, 4), (~mask[:4, :4]).expand(2, 4, 4))
    assert list(twin.given.values()) == (["its own constants, cut to size"] if mask is BANDED else [])


def test_a_large_mask_is_kept_by_its_kind() -> None:
    for kind, mask in (("open", torch.ones(70, 70)), ("causal", torch.ones(70, 70).tril())):
        graph = nf.trace(Masked(mask.bool()), torch.zeros(1, 70, 48))
        (held,) = (d["attributes"] for _, d in graph.nodes(data=True) if d["operation"] == "constant")
        assert held == ({"kind": "causal", "boolean": True} if kind == "causal" else {"entries": [[True]]})
        assert masks_of(nf.twin(graph).graph) == [mask[:4, :4].bool().tolist()]


def test_a_mask_made_from_inputs_is_taken_as_causal_and_that_is_said() -> None:
    graph = nf.trace(Masked(None), torch.zeros(2, 9, 48), torch.ones(2, 9, dtype=torch.long))
    assert "a causal mask where the graph does not hold the mask" in nf.twin(graph).assumption


def test_a_twin_with_another_mask_is_refused() -> None:
    """A bidirectional network has no causal twin: they may have other laws."""
    bidirectional, causal = (nf.twin(nf.trace(Masked(m), torch.zeros(2, 9, 48))) for m in (EVERY, EVERY.tril()))
    check_twin(causal)
    with pytest.raises(GraphError, match="constant at 'b_mask' of the twin is not what it is in the original"):
        check_twin(Twin(bidirectional.original, causal.graph, {}))
    with pytest.raises(GraphError, match="constant at 'b_mask'"):
        check_twin(Twin(bidirectional.original, bidirectional.graph, {"b_mask": "its own constants, cut to size"}))


def test_a_mask_decides_how_many_laws_a_relative_table_has() -> None:
    """Entries that a causal mask hides are read by nobody; those that an open one shows are."""
    torch.manual_seed(0)
    found = {
        causal: nf.completeness(Attention(4, scores="relative", positions=5, causal=causal), torch.zeros(3, 5, 4))
        for causal in (True, False)
    }
    assert {causal: c.laws_possible for causal, c in found.items()} == {True: 42, False: 22}
    assert {causal: c.complete for causal, c in found.items()} == {True: False, False: True}
    assert {tuple(direction) for direction in found[True].missing} == {("relative",)}
    hidden = torch.ones(5, 5).triu(1).bool()
    assert len(found[True].missing) == 2 * int(hidden.sum())


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
        (nn.LSTM(64, 128, batch_first=True, proj_size=40), torch.zeros(4, 9, 64), r"no rule by which to compute 'aten.lstm'"),
    ],
)
def test_what_has_no_twin_is_said(model: nn.Module, inputs: Tensor, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        nf.completeness(model, inputs)


def test_laws_given_by_hand_have_no_twin() -> None:
    graph, options = mlp(6, 4, 3), dict[str, Any](twin=True)
    with pytest.raises(ModelError, match="sizes of the network"):
        nf.completeness(graph, laws=nf.derive(graph), **options)
