"""Real models through the front door: what their operations are read as, what stays opaque, and what the graph ends in."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import pytest
import torch
from support import zoo
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.folding import moving_nodes
from noetherflow.bridge.trace import first_tensor, trace
from noetherflow.errors import TraceError
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.operations import OPERATIONS


def kinds(graph: ArchitectureGraph) -> Counter[str]:
    return Counter(data["operation"] for _, data in graph.nodes(data=True))


def opaque(graph: ArchitectureGraph) -> Counter[str]:
    """Operations outside the vocabulary that parameters reach."""
    moving = moving_nodes(graph)
    return Counter(d["operation"] for n, d in graph.nodes(data=True) if n in moving and d["operation"] not in OPERATIONS)


# Of each model of two layers: the blocks that must be found whole, and how often. The router's choice of experts is all that stays opaque.
FOUND: Final[dict[str, dict[str, int]]] = {
    "gpt2": {"embedding": 2, "linear": 9, "layer_norm": 5, "attention": 2, "gelu": 2},
    "llama": {"embedding": 1, "linear": 15, "rms_norm": 5, "rotary": 4, "attention": 2, "silu": 2},
    "llama_lora": {"linear": 15 + 2 * 6, "rms_norm": 5, "rotary": 4, "attention": 2},
    "qwen3": {"linear": 15, "rms_norm": 9, "rotary": 4, "attention": 2},
    "gemma2": {"linear": 15, "rms_norm": 9, "rotary": 4, "softmax": 2, "gelu": 2},
    "gemma3": {"linear": 15, "rms_norm": 13, "rotary": 4, "attention": 2, "gelu": 2},
    "mixtral": {"linear": 11, "rms_norm": 5, "rotary": 4, "attention": 2, "softmax": 2, "embedding": 1, "index_select": 4},
    "qwen3_moe": {"linear": 11, "rms_norm": 9, "rotary": 4, "attention": 2, "softmax": 2, "embedding": 1, "index_select": 4},
    "mamba": {"linear": 7, "rms_norm": 3, "convolution": 2, "softplus": 2, "matmul": 16},
    "bert": {"embedding": 3, "layer_norm": 5, "attention": 2, "gelu": 2},
    "t5": {"embedding": 4, "rms_norm": 12, "attention": 6, "relu": 4, "masked": 4},
    "vit": {"convolution": 1, "layer_norm": 5, "attention": 2, "gelu": 2},
    "timm_resnet18": {"convolution": 21, "batch_norm": 21, "relu": 17},
    "timm_convnext": {"layer_norm": 9, "gelu": 4},
    "timm_efficientnet": {"sigmoid": 10, "mean": 10},
    "timm_vit": {"convolution": 1, "layer_norm": 5, "attention": 2, "gelu": 2},
    "timm_mixer": {"convolution": 1, "layer_norm": 5, "linear": 9, "gelu": 4},
    "timm_swin": {"convolution": 1, "layer_norm": 11, "attention": 3, "softmax": 1, "rearrange": 2, "index_select": 4},
}
LEFT: Final[dict[str, dict[str, int]]] = {"mixtral": {"aten.topk": 4}, "qwen3_moe": {"aten.topk": 4}}


def test_the_table_names_every_model_of_the_zoo() -> None:
    assert FOUND.keys() == zoo.BUILDERS.keys()


@pytest.mark.parametrize("name", list(FOUND))
def test_a_real_model_is_read(name: str) -> None:
    model, inputs, options = zoo.build(name)
    graph = trace(model, *inputs, kwargs=options)
    graph.validate()
    assert opaque(graph) == LEFT.get(name, {})
    found = kinds(graph)
    assert FOUND[name].items() <= found.items(), found
    used = {p for _, d in graph.nodes(data=True) for p in d["parameters"].values()}
    assert used == graph.parameters.keys()  # what the graph does not read, no symmetry of it is true of
    assert ArchitectureGraph.from_json(graph.to_json()).to_json() == graph.to_json()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "bert", "vit"])
def test_attention_written_out_is_read_as_attention_kept_whole(name: str) -> None:
    model, inputs, options = zoo.build(name, attention="eager")
    whole, *_ = zoo.build(name)
    found = trace(model, *inputs, kwargs=options)
    assert kinds(found)["attention"] == 2
    assert opaque(found) == {}
    expected = symmetries(trace(whole, *inputs, kwargs=options))
    assert Counter((s.kind, s.dimension) for s in symmetries(found)) == Counter((s.kind, s.dimension) for s in expected)


def test_weightless_models_give_the_same_graph() -> None:
    model, inputs, _ = zoo.build("llama")
    with torch.device("meta"):
        weightless, *_ = zoo.build("llama")
    found, expected = kinds(trace(weightless, inputs[0].to("meta"))), kinds(trace(model, *inputs))
    del found["identity"], expected["identity"]  # moves between devices
    assert found == expected


# --- ends


def test_an_output_with_names_is_its_logits_or_its_loss() -> None:
    model, (ids,), _ = zoo.build("gpt2")
    model.config.loss_type = "ForCausalLM"
    graph = trace(model, ids)
    assert graph.nodes["output"]["dtype"] == "float32"
    (last,) = graph.predecessors("output")
    assert graph.nodes[last]["shape"] == (2, 7, 19)
    labelled = trace(model, ids, kwargs={"labels": ids})
    (end,) = (n for n in labelled if not labelled.out_degree(n))
    assert labelled.nodes[end]["operation"] == "cross_entropy"
    assert symmetries(labelled).dimension > symmetries(graph).dimension - 1


def test_a_loss_is_put_on_the_logits() -> None:
    model, (ids,), _ = zoo.build("llama")
    graph = trace(model, ids, loss="cross_entropy")
    (logits,) = graph.predecessors("loss")
    assert graph.nodes[logits]["shape"] == (2, 7, 19)
    assert graph.nodes["loss"]["attributes"] == {"axis": -1}


def test_the_loss_of_a_language_model_written_by_hand_is_traced() -> None:
    def shifted(logits: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].reshape(-1, 19), ids[:, 1:].reshape(-1))

    model, (ids,), _ = zoo.build("llama")
    for loss in (shifted, lambda output, target: shifted(output.logits, target)):
        graph = trace(model, ids, loss=loss)
        (end,) = (n for n in graph if not graph.out_degree(n))
        assert graph.nodes[end]["operation"] == "cross_entropy"
        assert opaque(graph) == {}


def test_a_cache_that_is_returned_is_explained() -> None:
    model, (ids,), _ = zoo.build("gpt2")
    model.config.use_cache = True
    with pytest.raises(TraceError, match="use_cache = False"):
        trace(model, ids)


class Named(nn.Module):
    """A model with keyword inputs whose output is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Any]:
        hidden = self.first(x).relu() * gate
        return {"hidden": hidden, "logits": self.second(hidden)}


def test_keyword_inputs_reach_the_model_and_its_loss() -> None:
    model, x, options = Named(), torch.zeros(5, 6), {"gate": torch.ones(4)}
    graph = trace(model, x, kwargs=options)
    assert sorted(d["operation"] for _, d in graph.nodes(data=True)) == ["input", "input", "linear", "linear", "multiply", "output", "relu"]
    assert len(list(graph.predecessors("output"))) == 2  # a dictionary may hold what another loss is put on
    hand = trace(model, x, kwargs=options, loss=lambda logits, target: F.cross_entropy(logits, target))
    assert kinds(hand)["cross_entropy"] == 1
    assert symmetries(graph).dimension == 0
    assert symmetries(hand).dimension == 4 + 4 + 1


def test_logits_come_before_other_members() -> None:
    assert first_tensor({"loss": torch.zeros(()), "logits": torch.zeros(2, 3)}).shape == (2, 3)
