"""noetherflow: the conservation laws of learning, derived with SymPy and verified on real training runs.

The front door is lazy (PEP 562): a name is looked up in `_FRONT_DOOR` and its module imported when the name is first used, so
that ``import noetherflow`` imports neither torch nor SymPy.

>>> import noetherflow as nf
>>> nf.__version__
'0.1.0'
"""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    # The same table once more, for type checkers and editors, which never run `__getattr__`.
    from noetherflow.bridge.align import align
    from noetherflow.bridge.breaking import watch_breaking
    from noetherflow.bridge.canonical import canonical
    from noetherflow.bridge.completeness import completeness
    from noetherflow.bridge.currents import currents
    from noetherflow.bridge.distance import distance
    from noetherflow.bridge.escape import escape
    from noetherflow.bridge.fixed_subspace import fixed_subspace
    from noetherflow.bridge.fold_gains import fold_gains
    from noetherflow.bridge.local_laws import local_laws
    from noetherflow.bridge.optimizers import rule_of
    from noetherflow.bridge.order_parameters import order_parameters
    from noetherflow.bridge.polynomial_laws import polynomial_laws
    from noetherflow.bridge.rebalance import rebalance
    from noetherflow.bridge.rechecking import check_certificate
    from noetherflow.bridge.teleport import teleport
    from noetherflow.bridge.trace import trace
    from noetherflow.bridge.transverse import transverse_hessian
    from noetherflow.bridge.twins import twin
    from noetherflow.bridge.unexplained import unexplained
    from noetherflow.bridge.verify import verify
    from noetherflow.bridge.verify_drift import verify_drift
    from noetherflow.bridge.watch import watch
    from noetherflow.numeric import data, ensembles, models, statistics
    from noetherflow.symbolic import metrics, rules
    from noetherflow.symbolic.broken import broken_symmetries
    from noetherflow.symbolic.discrete import discrete_symmetries
    from noetherflow.symbolic.equivariance import equivariance
    from noetherflow.symbolic.gauge import symmetries
    from noetherflow.symbolic.graph import ArchitectureGraph
    from noetherflow.symbolic.laws import derive

__version__: Final = "0.1.0"

__all__ = [
    "ArchitectureGraph",
    "__version__",
    "align",
    "broken_symmetries",
    "canonical",
    "check_certificate",
    "completeness",
    "currents",
    "data",
    "derive",
    "discrete_symmetries",
    "distance",
    "ensembles",
    "equivariance",
    "escape",
    "fixed_subspace",
    "fold_gains",
    "local_laws",
    "metrics",
    "models",
    "order_parameters",
    "polynomial_laws",
    "rebalance",
    "rule_of",
    "rules",
    "statistics",
    "symmetries",
    "teleport",
    "trace",
    "transverse_hessian",
    "twin",
    "unexplained",
    "verify",
    "verify_drift",
    "watch",
    "watch_breaking",
]

# Public name -> (module, attribute); an empty attribute means the module itself.
_FRONT_DOOR: Final = MappingProxyType(
    {
        "ArchitectureGraph": ("noetherflow.symbolic.graph", "ArchitectureGraph"),
        "align": ("noetherflow.bridge.align", "align"),
        "broken_symmetries": ("noetherflow.symbolic.broken", "broken_symmetries"),
        "canonical": ("noetherflow.bridge.canonical", "canonical"),
        "check_certificate": ("noetherflow.bridge.rechecking", "check_certificate"),
        "completeness": ("noetherflow.bridge.completeness", "completeness"),
        "currents": ("noetherflow.bridge.currents", "currents"),
        "data": ("noetherflow.numeric.data", ""),
        "derive": ("noetherflow.symbolic.laws", "derive"),
        "discrete_symmetries": ("noetherflow.symbolic.discrete", "discrete_symmetries"),
        "distance": ("noetherflow.bridge.distance", "distance"),
        "ensembles": ("noetherflow.numeric.ensembles", ""),
        "equivariance": ("noetherflow.symbolic.equivariance", "equivariance"),
        "escape": ("noetherflow.bridge.escape", "escape"),
        "fixed_subspace": ("noetherflow.bridge.fixed_subspace", "fixed_subspace"),
        "fold_gains": ("noetherflow.bridge.fold_gains", "fold_gains"),
        "local_laws": ("noetherflow.bridge.local_laws", "local_laws"),
        "metrics": ("noetherflow.symbolic.metrics", ""),
        "models": ("noetherflow.numeric.models", ""),
        "order_parameters": ("noetherflow.bridge.order_parameters", "order_parameters"),
        "polynomial_laws": ("noetherflow.bridge.polynomial_laws", "polynomial_laws"),
        "rebalance": ("noetherflow.bridge.rebalance", "rebalance"),
        "rule_of": ("noetherflow.bridge.optimizers", "rule_of"),
        "rules": ("noetherflow.symbolic.rules", ""),
        "statistics": ("noetherflow.numeric.statistics", ""),
        "symmetries": ("noetherflow.symbolic.gauge", "symmetries"),
        "teleport": ("noetherflow.bridge.teleport", "teleport"),
        "trace": ("noetherflow.bridge.trace", "trace"),
        "transverse_hessian": ("noetherflow.bridge.transverse", "transverse_hessian"),
        "twin": ("noetherflow.bridge.twins", "twin"),
        "unexplained": ("noetherflow.bridge.unexplained", "unexplained"),
        "verify": ("noetherflow.bridge.verify", "verify"),
        "verify_drift": ("noetherflow.bridge.verify_drift", "verify_drift"),
        "watch": ("noetherflow.bridge.watch", "watch"),
        "watch_breaking": ("noetherflow.bridge.breaking", "watch_breaking"),
    }
)


def __getattr__(name: str) -> Any:
    """Import the module behind a public name when it is first used, and keep the result."""
    if name not in _FRONT_DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Its public names are: {', '.join(sorted(_FRONT_DOOR))}.")
    module_name, attribute = _FRONT_DOOR[name]
    module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, whether or not they have been imported yet."""
    return sorted({*globals(), *_FRONT_DOOR})
