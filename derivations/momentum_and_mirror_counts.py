# sources: marcotte2024keep, own

# %% [markdown]
# # How many laws momentum and a mirror leave: each count a theorem
#
# **Claim** (`marcotte2024keep`). A change of metric, or inertia, changes how many functions training conserves whatever the data:
#
# | network | gradient flow | momentum flow | mirror flow $\dot\theta=-\theta\odot\nabla f$ |
# |---|---|---|---|
# | $UV^\top$, $N=n+m\ge3$ | $\frac{r(r+1)}2$ ($r\le N$), $Nr-\frac{N(N-1)}2$ ($r\ge N$) | $\frac{r(r-1)}2$ ($r\le2N$) | $r$ |
# | $UV^\top$, $n=m=1$ | $2r-1$ | $0$ ($r=1$), $4r-6$ ($r\ge2$) | |
# | $UU^\top$ | $0$ ($r\le n$), $nr-n^2$ ($r\ge n$) | $\frac{r(r-1)}2$ ($r\le2n$) | |
# | one hidden ReLU layer | one per unit | $0$ | |
# | input-convex (mirror on $U\ge0$) | | | one per unit |
#
# **What is shown here** (own). Every entry is counted exactly, modulo a prime: the dimension of the Lie algebra of the flow's vector
# fields at a point bounds the number of laws from above, and functions that theory derives (charges under the metric, angular momenta
# $e^{\gamma t}\langle R\theta,\dot\theta\rangle$), shown independent by the same arithmetic, bound it from below. Where the two meet
# there is no other law of any form. Momentum flow lives in time, parameters and velocities: $2D+1$ coordinates.
#
# **Assumptions.** Laws hold near a generic point, for every data set.

# %%
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.palette import ACCENTS, STYLE
from noetherflow.symbolic.metrics import ARGUMENT, ENTROPY, Mirror

torch.set_num_threads(1)
MIRROR = Mirror(ENTROPY, name="entropy")
CONVEX = Mirror(ARGUMENT**2 / 2, {"u": ENTROPY}, name="entropy on U")


class Factors(nn.Module):
    """x U Vᵀ; with V = U where m is 0."""

    def __init__(self, n: int, m: int, r: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.rand(n, r))
        self.v = nn.Parameter(torch.rand(m, r)) if m else self.u

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.u @ self.v.T)


class Convex(nn.Module):
    """Convex in its input for U >= 0."""

    def __init__(self, n: int, r: int) -> None:
        super().__init__()
        self.first, self.u = nn.Linear(n, r), nn.Parameter(torch.rand(r))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x)) @ self.u


def hidden(n: int, r: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n, r), nn.ReLU(), nn.Linear(r, 1))


class Row(NamedTuple):
    """One entry of the table: a network, its flow, what is published, what is counted."""

    network: str
    flow: str
    size: tuple[int, ...]
    published: int
    derived: int
    possible: int
    proved: bool


def count(network: str, model: nn.Module, size: tuple[int, ...], published: int, flow: str = "gradient") -> Row:
    options = {"gradient": {}, "momentum": {"friction": 1}, "mirror": {"metric": CONVEX if network == "input-convex" else MIRROR}}
    found = nf.completeness(model, torch.zeros(2, size[0]), loss="mse", **options[flow])
    return Row(network, flow, size, published, found.laws_found, found.laws_possible, found.mode == "proved")


# %% [markdown]
# ## 1. The published formulas

# %%


def linear_gradient(n: int, m: int, r: int) -> int:
    total = n + m
    return r * (r + 1) // 2 if r <= total else total * r - total * (total - 1) // 2


def pairs(r: int) -> int:
    return r * (r - 1) // 2


# Both branches of a formula give the same at their border.
R, N = sp.symbols("r N", positive=True)
assert sp.expand((N * R - N * (N - 1) / 2 - R * (R + 1) / 2).subs(R, N)) == 0
assert sp.expand((2 * N * R - N * (2 * N + 1) - R * (R - 1) / 2).subs(R, 2 * N)) == 0

# %% [markdown]
# ## 2. The counts

# %%
rows: list[Row] = []
for n, m, r in ((2, 1, 1), (2, 1, 2), (2, 1, 3), (2, 1, 4), (2, 2, 2), (2, 2, 3), (1, 1, 2), (1, 1, 3)):
    rows.append(count("U Vᵀ", Factors(n, m, r), (n, m, r), linear_gradient(n, m, r)))
    rows.append(count("U Vᵀ", Factors(n, m, r), (n, m, r), pairs(r) if n + m > 2 else 4 * r - 6, "momentum"))
    if m > 1:
        rows.append(count("U Vᵀ", Factors(n, m, r), (n, m, r), r, "mirror"))
for n, r in ((2, 2), (3, 2), (2, 3)):
    rows.append(count("U Uᵀ", Factors(n, 0, r), (n, r), max(0, n * r - n * n)))
    rows.append(count("U Uᵀ", Factors(n, 0, r), (n, r), pairs(r), "momentum"))
for n, r in ((2, 2), (3, 3)):
    rows.append(count("ReLU", hidden(n, r), (n, r), r))
    rows.append(count("ReLU", hidden(n, r), (n, r), 0, "momentum"))
    rows.append(count("input-convex", Convex(n, r), (n, r), r, "mirror"))
for row in rows:
    print(f"{row.network:13} {row.flow:9} {row.size!s:10} published {row.published:2}  derived {row.derived:2}  possible {row.possible:2}")
assert all(row.proved for row in rows)
assert all(row.possible == row.published for row in rows), [row for row in rows if row.possible != row.published]
short = [row for row in rows if row.derived < row.possible]
assert {(row.network, row.flow, row.size) for row in short} == {
    ("U Uᵀ", "gradient", (2, 3)),
    ("U Vᵀ", "momentum", (1, 1, 2)),
    ("U Vᵀ", "momentum", (1, 1, 3)),
}, short

# %% [markdown]
# Two kinds of entries hold more than is derived from the network's graph; the count says so.
#
# With $n=m=1$ the network is one number $u\cdot v$, a quadratic form of signature $(r,r)$: besides $GL(r)$, $\delta u = Bv$ with an
# antisymmetric $B$ leaves it alone (and $\delta v = Cu$), a symmetry that mixes two layers and that no wider network has. Its rotations
# are those of $u+v$ and of $u-v$, each by itself: $2\cdot\frac{r(r-1)}2$ momenta, of which $4r-6$ are independent for $r\ge2$.

# %%
width = 3
first, second = sp.Matrix(sp.symbols(f"u_:{width}")), sp.Matrix(sp.symbols(f"v_:{width}"))
turn = sp.Matrix(width, width, lambda i, j: sp.Symbol(f"b_{min(i, j)}{max(i, j)}") * sp.sign(j - i))
assert sp.expand((turn * second).dot(second)) == 0, "δ(u·v) along δu = B v"
assert sp.expand((turn * second).dot(sp.Matrix(sp.symbols(f"w_:{width}")))) != 0, "with two outputs it is no symmetry"

# %% [markdown]
# The other entry is no charge of a symmetry: $UU^\top$ with $r>n$ under gradient flow. There $\dot U = SU$ with a symmetric matrix $S$ that
# the data choose freely; brackets of such fields give every $S\in\mathfrak{gl}(n)$, so that what is conserved is exactly the *row
# space* of $U$: a point of the Grassmannian of $n$-planes in $\mathbb R^r$, $n(r-n) = nr-n^2$ numbers, rational functions of the
# entries. The count finds them without being told; no polynomial of low degree is among them.

# %%
n, r = 2, 3
u = sp.Matrix(n, r, sp.symbols(f"u_:{n * r}"))
s = sp.Matrix(n, n, lambda i, j: sp.Symbol(f"s_{min(i, j)}{max(i, j)}"))
velocity = s * u
coordinates = u[:, :n].inv() * u[:, n:]  # of the row space
along = sp.Matrix([sum(sp.diff(c, u[k]) * velocity[k] for k in range(n * r)) for c in coordinates])
assert sp.simplify(along) == sp.zeros(*along.shape), "the row space moves"
assert len(coordinates) == n * r - n * n
fields = []
for a in range(n):
    for b in range(a + 1):
        basis = sp.zeros(n)
        basis[a, b] = basis[b, a] = 1
        fields.append(dict(zip(u, basis * u, strict=True)))
none = nf.polynomial_laws(fields, degree=3)
assert none.laws == ()
print(none)

# %% [markdown]
# **A wrong sibling.** Were the momentum flow counted with charges in place of angular momenta, or at another friction than the one in
# $e^{\gamma t}$, the arithmetic refutes it: a charge moves with inertia.

# %%
from noetherflow.bridge.counted_flows import Gradient, Momentum  # the parts behind nf.completeness
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.sampling import Sampling
from noetherflow.numeric.modular import PRIMES

graph = nf.trace(Factors(2, 2, 3), torch.zeros(2, 2), loss="mse")
laws = nf.derive(graph)
refuted: dict[str, bool] = {}
for name, claimed in (("momenta", Momentum(1)), ("friction 2 in the law", Momentum(2))):
    tried = Count(Sampling(graph, "0", "realised", PRIMES[0]), claimed.conserved(laws), Momentum(1))
    tried.run()
    refuted[name] = bool(tried.refuted)
charges = Count(Sampling(graph, "0", "realised", PRIMES[0]), Gradient().conserved(laws), Momentum(1))
charges.run()
refuted["charges"] = bool(charges.refuted)
assert refuted == {"momenta": False, "friction 2 in the law": True, "charges": True}, refuted

# %% [markdown]
# ## 3. The figure

# %%


def draw(axes: Axes, network: str, title: str, formulas: dict[str, Callable[[int], int]]) -> None:
    for (flow, formula), colour in zip(formulas.items(), ACCENTS, strict=False):
        chosen = sorted(
            {
                (row.size[-1], row.possible)
                for row in rows
                if row.network == network and row.flow == flow and row.size[:-1] == SHOWN[network]
            }
        )
        widths = range(1, max(r for r, _ in chosen) + 1)
        axes.plot(widths, [formula(r) for r in widths], color=colour, linewidth=1.1, label=f"{flow}, published")
        axes.plot(*zip(*chosen, strict=True), "o", color=colour, markersize=5, label=f"{flow}, proved")
    axes.set(title=title, xlabel="inner width r", ylabel="independent laws")
    axes.set_xticks(range(1, 5))
    axes.legend()


SHOWN = {"U Vᵀ": (2, 1), "U Uᵀ": (2,)}
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, "U Vᵀ", "U Vᵀ, n = 2, m = 1", {"gradient": lambda r: linear_gradient(2, 1, r), "momentum": pairs})
    draw(right, "U Uᵀ", "U Uᵀ, n = 2", {"gradient": lambda r: max(0, 2 * r - 4), "momentum": pairs})
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "momentum_and_mirror_counts.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
wrong = [row for row in rows if row.possible != row.published or not row.proved]
if wrong or not refuted["charges"]:
    raise AssertionError(f"Counts differ from the published ones: {wrong}; refuted {refuted}")
