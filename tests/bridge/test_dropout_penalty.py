"""What dropout adds to a network's loss and which symmetries it removes."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.dropout_penalty import _ones
from noetherflow.errors import ModelError, RunError

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
# each is a sum of fewer than 2^10 products
ROUNDING = 2.0**-53 * 2**10


def pair(p: float, middle: nn.Module | None = None) -> nn.Sequential:
    torch.default_generator.manual_seed(0)
    parts = [nn.Linear(3, 4), *([middle] if middle is not None else []), nn.Dropout(p), nn.Linear(4, 2)]
    return nn.Sequential(*parts).double()


@torch.no_grad()
def enumerated(front: nn.Module, last: nn.Module, x: Tensor, shape: tuple[int, ...], p: float) -> float:
    """The mean of the loss over all masks between two parts of a network."""
    hidden, total, count = front(x), 0.0, math.prod(shape)
    for drawn in product((0.0, 1.0), repeat=count):
        mask = torch.tensor(drawn, dtype=torch.float64).view(shape)
        weight = (1 - p) ** sum(drawn) * p ** (count - sum(drawn))
        total += weight * float(F.mse_loss(last(hidden * mask / (1 - p)), Y))
    return total


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("middle", [None, nn.ReLU(), nn.Tanh()], ids=["linear", "relu", "tanh"])
def test_the_penalty_of_a_last_layer_is_exact(p: float, middle: nn.Module | None) -> None:
    model = pair(p, middle)
    found = nf.dropout_penalty(model, X, Y, F.mse_loss, draws=400)
    added = enumerated(model[:-2], model[-1], X, (2, 4), p) - found.loss
    assert abs(found.total - added) < ROUNDING
    assert abs(found.total * (1 - p) - added) > 0.09 * added, "p for the ratio"
    assert found.measured.holds(found.total)


def test_deeper_masks_and_other_losses_are_seen_to_leading_order() -> None:
    """E L(z) - L(1) of tanh behind a mask, by moments of masks: the penalty's error is the third moment's, not rounding."""
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.05), nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.05), nn.Linear(3, 2)).double()
    found = nf.dropout_penalty(model, X, Y, F.mse_loss, draws=4000)
    assert set(found.predicted) == {"1", "4"}
    assert found.measured.holds(found.total)


def test_a_layer_called_twice_is_two_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer, self.drop = nn.Linear(3, 4), nn.Linear(4, 2), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.drop(torch.relu(self.inner(self.drop(x)))))

    torch.default_generator.manual_seed(0)
    found = nf.dropout_penalty(Twice().double(), X, Y, F.mse_loss, draws=50)
    assert set(found.predicted) == {"drop", "drop#2"}


def test_channels_are_masked_whole() -> None:
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    found = nf.dropout_penalty(model, x, Y, F.mse_loss, draws=400)
    added = enumerated(model[0], model[2:], x, (2, 3, 1, 1), 0.3) - found.loss
    assert abs(found.total - added) < ROUNDING
    assert found.measured.holds(found.total)
    each = 0.3 / 0.7 / 4 * float((model[3].weight * model[0](x).flatten(1)[:, None]).square().sum().detach())
    assert abs(each - added) > 0.05 * added, "were each pixel masked alone"


def test_between_linear_layers_dropout_leaves_rescalings_of_gl() -> None:
    found = nf.dropout_penalty(pair(0.2), X, Y, F.mse_loss, draws=50)
    assert [s.kind for s in found.with_dropout] == ["rescale"]
    assert {s.kind for s in found.removed} == {"linear", "affine"}
    assert found.generators_removed == 4 * 4 + 4 - 4
    assert found.discrete_with.order == 24 * 2**4
    assert "removes 16 generators" in repr(found)


def test_behind_a_relu_dropout_removes_nothing() -> None:
    """Negative control: rescalings of units commute with masks of units."""
    found = nf.dropout_penalty(pair(0.2, nn.ReLU()), X, Y, F.mse_loss, draws=50)
    assert found.removed == ()
    assert found.generators_removed == 0
    assert "removes no continuous symmetry" in repr(found)


@pytest.mark.parametrize("model", [nn.Linear(3, 2), pair(0.0)], ids=["none", "idle"])
def test_a_model_without_dropout_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no dropout layer"):
        nf.dropout_penalty(model.double(), X, Y, F.mse_loss)


def test_the_model_is_left_as_it_was() -> None:
    model = pair(0.2).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    nf.dropout_penalty(model, X, Y, F.mse_loss, draws=10)
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("other", [nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)])
def test_other_noise_is_refused_while_it_is_on(other: nn.Module) -> None:
    """It was measured as if the layers' masks had made it: seven times what was predicted."""
    model = nn.Sequential(nn.Linear(3, 5), other, nn.Dropout(0.2), nn.Linear(5, 2)).double()
    with pytest.raises(RunError, match="dropout"):
        nf.dropout_penalty(model, torch.randn(6, 3).double(), torch.randn(6, 2).double(), nn.functional.mse_loss, draws=20)
    other.eval()
    assert list(nf.dropout_penalty(model, torch.randn(6, 3).double(), torch.randn(6, 2).double(), nn.functional.mse_loss).predicted) == [
        "2"
    ]


def test_a_layer_that_masks_all_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(1.0), nn.Dropout(0.2), nn.Linear(5, 2))
    with pytest.raises(ModelError, match="p = 1"):
        nf.dropout_penalty(model, torch.randn(6, 3), torch.randn(6, 2), nn.functional.mse_loss)


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout1d, (4, 3)),
        (nn.Dropout1d, (4, 3, 5)),
        (nn.Dropout2d, (4, 3)),
        (nn.Dropout2d, (4, 3, 5)),
        (nn.Dropout2d, (4, 3, 2, 2)),
        (nn.Dropout3d, (4, 3, 2, 2)),
        (nn.Dropout3d, (4, 3, 2, 2, 2)),
    ],
)
def test_masks_have_the_shape_of_torchs_own(layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    """What torch masks together: along which axes its masks differ, over enough draws that none is constant by chance (2^-200)."""
    torch.manual_seed(0)
    own = layer(0.5)
    drawn = torch.stack([own(torch.ones(shape)) for _ in range(200)])
    told = tuple(1 if bool((drawn == drawn.narrow(axis + 1, 0, 1)).all()) else n for axis, n in enumerate(shape))
    assert tuple(_ones(own, torch.ones(shape)).shape) == told
