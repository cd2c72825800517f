"""What holds only at these parameters or for these data is told apart from what holds always."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.local_laws import LocalLaws
from noetherflow.errors import ModelError


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def data(constant: float | None = None) -> list[Tensor]:
    torch.manual_seed(1)
    x = 3 * torch.randn(120, 4, dtype=torch.float64)
    if constant is not None:
        x[:, 2] = constant
    return [x]


def dead(model: nn.Sequential, unit: int) -> nn.Sequential:
    first = model[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.bias[unit] = -1e3
    return model


def units(found: tuple[dict[str, Tensor], ...]) -> set[int]:
    return {int(i) for direction in found for i in direction.get("0.bias", torch.zeros(5)).nonzero().flatten()}


def test_a_network_in_general_position_has_its_symmetries_only() -> None:
    found = nf.local_laws(network(), data())
    assert (found.universal, found.here, found.data, found.underived) == (5, (), (), 0)
    assert (found.functional.rank, found.functional.defect) == (43 - 5, 5)
    assert "only here" not in str(found)


def test_a_dead_unit_holds_its_weights_only_here() -> None:
    found = nf.local_laws(dead(network(), 1), data())
    assert (found.universal, len(found.here), found.data) == (5, 4 + 1 + 3 - 1, ())  # all its weights, less what its rescaling explains
    assert found.underived == 0
    touched = torch.stack([direction["0.weight"].abs() for direction in found.here if "0.weight" in direction]).sum(0)
    assert touched.sum(1).nonzero().flatten().tolist() == [1]
    assert "only here: " in str(found)
    assert "0.weight[1" in str(found)


@pytest.mark.parametrize("value", [0.0, 1.7])
def test_a_constant_pixel_holds_a_combination_of_its_column_and_the_bias_for_these_data(value: float) -> None:
    found = nf.local_laws(network(), data(value))
    assert (found.universal, found.here, len(found.data), found.lasting) == (5, (), 5, 5)
    for direction in found.data:
        (unit,) = direction["0.weight"][:, 2].nonzero().flatten().tolist()
        others = torch.arange(4) != 2
        assert not direction["0.weight"][:, others].any()
        change = direction["0.weight"][unit, 2] * value + direction.get("0.bias", torch.zeros(5))[unit]
        assert abs(float(change)) < 1e-9
    assert "only for these data: 0.weight[" in str(found)
    assert "at other parameters too, for these data: 5 of 5" in str(found)


def test_both_at_once_are_told_apart() -> None:
    found: LocalLaws = nf.local_laws(dead(network(), 4), data(1.7))
    assert (found.universal, len(found.here), len(found.data)) == (5, 7, 4)
    assert units(found.data) == {0, 1, 2, 3}
    assert found.functional.defect == 5 + 7 + 4


def test_what_no_family_explains_anywhere_is_not_said_to_be_local() -> None:
    """A weight divided by its largest entry: nothing says that its scale is not seen, here or anywhere."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.tanh(x @ (self.a / self.a.abs().amax())))
            return y

    torch.manual_seed(0)
    found = nf.local_laws(Scaled(), [torch.randn(60, 3, dtype=torch.float64)])
    assert (len(found.here), found.underived, found.data) == (1, 1, ())
    assert "not derived, everywhere: 1" in str(found)


def test_single_precision_is_refused() -> None:
    with pytest.raises(ModelError, match="float64"):
        nf.local_laws(network().float(), data())
