"""Student's distributions against SciPy, intervals against their own promise, and judgements that must not pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from noetherflow.errors import RunError
from noetherflow.numeric.statistics import decay_rates, judge, mean_interval, ratio_interval, sample_size
from noetherflow.numeric.student import power_of_t, student_cdf, student_quantile

FREEDOMS = [1, 2, 3, 5, 10, 31, 299, 3000]


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_students_distribution_is_scipys(freedom: int) -> None:
    for t in (-8.0, -3.0, -1.0, -0.01, 0.0, 0.3, 1.0, 2.5, 6.0, 20.0):
        assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-10, abs=1e-15)
    for probability in (1e-6, 0.3, 0.6, 0.95, 0.995, 0.99999):
        assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_the_power_is_that_of_the_noncentral_distribution(freedom: int) -> None:
    """Against adaptive quadrature of SciPy's normal over its chi distribution (its own noncentral t is nan for some negative shifts)."""
    root = math.sqrt(freedom)
    for shift in (0.5, -2.0, 4.0, 8.0):
        critical = stats.t.ppf(0.995, freedom)

        def rejected(s: float, shift: float = shift, critical: float = critical) -> float:
            both = stats.norm.sf(critical * s - shift) + stats.norm.cdf(-critical * s - shift)
            return float(both * stats.chi.pdf(s * root, freedom) * root)

        known = integrate.quad(rejected, 0, 1, epsabs=1e-13)[0] + integrate.quad(rejected, 1, np.inf, epsabs=1e-13)[0]
        assert power_of_t(shift, critical, freedom) == pytest.approx(known, abs=1e-8)


def test_intervals_hold_the_mean_as_often_as_they_promise() -> None:
    """Three thousand ensembles of six runs: the share that misses is binomial; four standard deviations either way."""
    samples = np.random.default_rng(3).normal(2.0, 1.5, size=(3_000, 6))
    for confidence in (0.8, 0.95):
        missed = sum(not mean_interval(row, confidence).holds(2.0) for row in samples)
        expected = 3_000 * (1 - confidence)
        assert abs(missed - expected) < 4 * math.sqrt(expected * confidence)
        normal = stats.norm.ppf((1 + confidence) / 2)  # the wrong sibling: as if the deviation were known
        naive = (np.abs(samples.mean(1) - 2.0) > normal * samples.std(1, ddof=1) / math.sqrt(6)).sum()
        assert abs(naive - expected) > 4 * math.sqrt(expected * confidence)


def test_several_intervals_hold_together() -> None:
    samples = np.random.default_rng(4).normal(size=(1_000, 8, 5))
    missed = sum(not mean_interval(rows, 0.9).holds(np.zeros(5)) for rows in samples)
    assert missed <= 100 + 4 * math.sqrt(90)
    assert sum(not mean_interval(rows[:, 0], 0.9).holds(0.0) for rows in samples) == pytest.approx(100, abs=4 * math.sqrt(90))


def test_the_sample_size_gives_the_power_and_one_less_does_not() -> None:
    for distance, confidence, power in ((1.0, 0.99, 0.95), (0.2, 0.95, 0.8), (3.0, 0.99, 0.99)):
        n = sample_size(distance, 1.0, confidence, power)
        for count, enough in ((n, True), (n - 1, False)):
            critical = stats.t.ppf((1 + confidence) / 2, count - 1)
            shift = distance * math.sqrt(count)
            assert (stats.nct.sf(critical, count - 1, shift) + stats.nct.cdf(-critical, count - 1, shift) >= power) is np.bool_(enough)


def test_rejections_are_as_frequent_as_the_stated_power() -> None:
    generator = np.random.default_rng(5)
    n, found = 30, []
    for _ in range(600):
        verdict = judge(generator.normal(1.0, 1.0, size=n), 1.0, {"none": 0.25}, confidence=0.95)
        found.append(verdict.rejected["none"])
    critical = stats.t.ppf(0.975, n - 1)
    power = power_of_t(0.75 * math.sqrt(n), critical, n - 1)
    assert np.mean(found) == pytest.approx(power, abs=4 * math.sqrt(power * (1 - power) / 600))


def test_a_verdict_cannot_pass_for_lack_of_data() -> None:
    samples = np.random.default_rng(6).normal(1.0, 1.0, size=4000)
    few, many = (judge(samples[:n], 1.0, {"a tenth more": 1.1}) for n in (20, 4000))
    assert few.interval.holds(0.0)
    assert few.status == "undecided"
    assert not few.holds
    assert 1000 < few.needed["a tenth more"] < 4000
    assert "NOT rejected" in str(few)
    assert "needs" in str(few)
    assert many.holds
    assert many.power["a tenth more"] > 0.95
    assert judge(samples, 1.1, {"less": 1.0}).status == "fails"


def test_a_lucky_rejection_is_no_verdict() -> None:
    """A sibling that this ensemble happens to reject, where most of its size would not."""
    samples = np.array([0.7, 1.3, 0.8, 1.2, 0.75, 1.25]) - 0.1
    verdict = judge(samples, 1.0, {"more": 1.5})
    assert verdict.rejected["more"]
    assert verdict.power["more"] < 0.95
    assert verdict.status == "undecided"


def test_predictions_may_differ_from_run_to_run_and_from_charge_to_charge() -> None:
    generator = np.random.default_rng(7)
    start = generator.normal(size=(300, 2)) * 10
    samples = 0.5 * start + np.array([1.0, 0.0]) + 0.1 * generator.normal(size=(300, 2))
    verdict = judge(samples, 0.5 * start + np.array([1.0, 0.0]), {"no shift": 0.5 * start, "other factor": 0.45 * start + 1})
    assert verdict.holds
    assert judge(samples, 0.5 * start, {"with it": 0.5 * start + 1}).status == "fails"


def test_a_ratio_of_means_is_not_a_mean_of_ratios() -> None:
    generator = np.random.default_rng(8)
    below = generator.gamma(3.0, size=(300, 80))
    above = 3 * below + generator.normal(1.0, 1.0, size=(300, 80))
    missed = sum(not ratio_interval(a, b, 0.9).holds(3 + 1 / 3) for a, b in zip(above, below, strict=True))
    assert missed == pytest.approx(30, abs=4 * math.sqrt(27) + 6)
    naive = sum(not mean_interval(a / b, 0.9).holds(3 + 1 / 3) for a, b in zip(above, below, strict=True))
    assert naive > 90


def test_rates_of_decay() -> None:
    times = np.linspace(0, 5, 40)
    generator = np.random.default_rng(9)
    true = generator.normal(0.7, 0.05, size=(200, 1))
    values = np.exp(-true * times + 0.05 * generator.normal(size=(200, 40)))
    values[:, :8] *= 3  # a transient, left out
    rates = decay_rates(times, -values, after=times[8])
    assert judge(rates, 0.7, {"half": 0.35, "a little faster": 0.73}).holds
    assert not mean_interval(decay_rates(times, values)).holds(0.7)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda: mean_interval([1.0]), "two or more samples"),
        (lambda: mean_interval([1.0, math.nan, 2.0]), "1 of 3 samples are not finite"),
        (lambda: mean_interval([1.0, 2.0], 1.0), "between 0 and 1"),
        (lambda: judge([1.0, 2.0], 1.0, {}), "needs a wrong sibling"),
        (lambda: judge([1.0, 2.0], 1.0, {"same": 1.0}), "predicts what the prediction does"),
        (lambda: sample_size(0.0, 1.0), "No number of runs"),
        (lambda: ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0]), "the same runs"),
        (lambda: decay_rates([0.0, 1.0, 2.0], [[1.0, 0.0, 1.0]]), "finite and not zero"),
        (lambda: decay_rates([0.0, 1.0], [[1.0, 2.0]]), "three or more times"),
        (lambda: student_cdf(1.0, 0), "degrees of freedom"),
        (lambda: student_quantile(1.0, 3), "between 0 and 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(attempt: Any, said: str) -> None:
    with pytest.raises(RunError, match=said):
        attempt()
