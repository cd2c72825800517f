"""Real models through the front door: everything is read, and every generator is true on the model itself."""

from __future__ import annotations

import pytest
import torch
from support import zoo
from support.real_models import Judge, exact

from noetherflow.bridge.trace import trace
from noetherflow.symbolic.gauge import symmetries


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo.BUILDERS))
def test_every_generator_of_a_real_model_is_true(name: str) -> None:
    torch.manual_seed(0)
    model, inputs, keywords = zoo.build(name)
    model = exact(model)
    inputs = tuple(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)
    found = symmetries(trace(model, *inputs, kwargs=keywords))
    assert found.dimension > 0
    assert Judge(model, inputs, keywords).violations(found) == []


def test_a_wrong_generator_of_a_real_model_is_seen() -> None:
    """Negative control: a Llama's symmetries, claimed of one whose gate is bounded, are rejected where the gate's scale is used."""
    torch.manual_seed(0)
    model, inputs, keywords = zoo.build("llama")
    claimed = symmetries(trace(exact(model), *inputs, kwargs=keywords))
    for layer in model.get_submodule("model.layers").children():
        layer.mlp.up_proj.register_forward_hook(lambda module, args, output: output.tanh())
    wrong = Judge(model, inputs, keywords).violations(claimed)
    assert {text.split(":")[0] for text in wrong} == {s.name for s in claimed if s.parameters[0].endswith("up_proj.weight")}
