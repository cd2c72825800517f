"""Real runs held to their energy balance; every part that is left out is missed."""

import matplotlib.figure
import pytest
import torch
from torch import nn

import noetherflow as nf
from noetherflow.errors import RuleError, RunError
from noetherflow.numeric.energy_report import EnergyReport

WIDTHS = (49, 12, 10)


def batches(steps: int, dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = nf.data.fashion_mnist_subset().batches(32, seed=0, steps=steps, dtype=dtype)
    return [(nn.functional.avg_pool2d(images, 4), labels) for images, labels in found]


def model(activation: str = "tanh") -> nn.Module:
    return nf.models.build("mlp", seed=0, widths=WIDTHS, activation=activation).double()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "ascent": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, maximize=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_change_of_the_loss_is_predicted_to_rounding(name: str) -> None:
    net = model()
    report = nf.energy_balance(net, OPTIMIZERS[name](net.parameters()), batches(4))
    assert report.holds, report
    assert all(r.smooth for r in report.steps), "a tanh network has no kinks"
    assert all(r.quadrature < r.rounding for r in report.steps)
    moving = [part for part, value in report.budget().items() if value != 0 and part != "kinks"]
    assert "curvature" in moving
    for part in moving:
        assert max(r.without(part) for r in report.steps) > 1e3, part
    if name in ("momentum", "nesterov", "ascent"):
        for r in report.steps[1:]:
            assert abs(r.mechanical_residual) <= r.bound
            assert abs(r.mechanical_residual + 2 * r.mechanical_parts["friction"]) > 1e3 * r.bound, "friction of the other sign"
            assert abs(r.mechanical_residual + r.mechanical_parts["turning"]) > 1e3 * r.bound
    else:
        assert all(r.mechanical_change is None for r in report.steps)


def test_half_of_the_second_order_is_rejected() -> None:
    net = model()
    report = nf.energy_balance(net, OPTIMIZERS["sgd"](net.parameters()), batches(4))
    assert min(abs(r.residual + r.parts["curvature"] / 2) / r.bound for r in report.steps) > 1e6


def test_the_loss_of_all_data_books_the_noise() -> None:
    data, net = batches(5), model()
    whole = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    report = nf.energy_balance(net, OPTIMIZERS["momentum"](net.parameters()), data, population=whole)
    assert report.holds, report
    assert min(r.without("noise") for r in report.steps) > 1e6
    assert all(r.mechanical_change is None for r in report.steps), "the buffers hold gradients of other losses"


def test_parameter_groups_and_batch_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(49, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10)).double()
    groups = [{"params": [*net[1].parameters()], "lr": 0.3}, {"params": [*net[2].parameters(), *net[4].parameters()], "weight_decay": 0.1}]
    report = nf.energy_balance(net, torch.optim.SGD(groups, lr=0.1, momentum=0.5), batches(3))
    assert report.holds, report
    assert max(r.without("weight_decay") for r in report.steps) > 1e3


def test_float32_has_the_bound_of_its_own_roundings() -> None:
    net = model().float()
    report = nf.energy_balance(net, OPTIMIZERS["momentum"](net.parameters()), batches(4, torch.float32))
    assert report.holds, report
    assert max(r.bound for r in report.steps) < 1e-3
    assert min(r.without("curvature") for r in report.steps) > 10


def test_relu_needs_its_kinks() -> None:
    net = model("relu")
    report = nf.energy_balance(net, torch.optim.SGD(net.parameters(), lr=0.5), batches(3))
    assert report.holds, report
    assert max(r.without("kinks") for r in report.steps) > 3, "the mean Hessian alone does not give the change"
    assert not all(r.smooth for r in report.steps)


class Doubled(torch.optim.SGD):
    """Not its rule: twice the step."""

    def step(self, closure: None = None) -> None:
        super().step(closure)
        super().step(closure)


def test_an_optimizer_that_does_not_follow_its_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    with pytest.raises(RuleError, match="Doubled"):
        nf.energy_balance(net, Doubled(net.parameters(), lr=0.1), batches(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    taken = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (taken(), taken()))
    assert not nf.energy_balance(net, optimizer, batches(2)).holds


def test_the_report_can_be_read() -> None:
    net = model()
    report: EnergyReport = nf.energy_balance(net, OPTIMIZERS["momentum"](net.parameters()), batches(3))
    text = repr(report)
    assert "SGD with momentum: holds" in text
    assert "curvature" in text
    assert report._repr_html_().startswith("<pre>")
    rows = report.table()
    assert len(rows) == 3
    assert abs(sum(rows[0][name] for name in report.mechanisms) - rows[0]["predicted"]) <= rows[0]["bound"]
    assert abs(sum(report.budget().values()) - sum(r.change for r in report.steps)) <= sum(r.bound for r in report.steps)
    assert isinstance(report.plot(), matplotlib.figure.Figure)


def test_refusals() -> None:
    net = model()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    with pytest.raises(RunError, match="ended after 0"):
        nf.energy_balance(net, optimizer, [])
    with pytest.raises(RunError, match="ended after 1 of 3"):
        nf.energy_balance(net, optimizer, batches(1), steps=3)
    with pytest.raises(RunError, match="Unknown loss"):
        nf.energy_balance(net, optimizer, batches(1), loss="hinge")
    dropped = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(49, 10)).double()
    with pytest.raises(RunError, match="no function of the parameters"):
        nf.energy_balance(dropped, torch.optim.SGD(dropped.parameters(), lr=0.1), batches(1))
