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
    from noetherflow.bridge.anchoring import anchored
    from noetherflow.bridge.asymmetric import without_symmetries
    from noetherflow.bridge.augmentation_equivariance import augmentation_equivariance
    from noetherflow.bridge.augmentation_momenta import augmentation_momenta
    from noetherflow.bridge.augmented_laws import augmented_laws
    from noetherflow.bridge.between_steps import between_steps
    from noetherflow.bridge.breaking import watch_breaking
    from noetherflow.bridge.canonical import canonical
    from noetherflow.bridge.collapse import transverse_growth
    from noetherflow.bridge.completeness import completeness
    from noetherflow.bridge.critical_decay import critical_decay
    from noetherflow.bridge.currents import currents
    from noetherflow.bridge.distance import distance
    from noetherflow.bridge.dropout_penalty import dropout_penalty
    from noetherflow.bridge.energy_balance import energy_balance
    from noetherflow.bridge.escape import escape
    from noetherflow.bridge.fixed_subspace import fixed_subspace
    from noetherflow.bridge.fold_gains import fold_gains
    from noetherflow.bridge.local_laws import local_laws
    from noetherflow.bridge.mirrors import mirrors
    from noetherflow.bridge.optimizers import rule_of
    from noetherflow.bridge.orbit_profile import orbit_profile
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
    from noetherflow.numeric import data, ensembles, input_groups, models, statistics
    from noetherflow.numeric.barrier import barrier
    from noetherflow.numeric.line_curvature import line_curvature
    from noetherflow.numeric.merging import merge
    from noetherflow.numeric.tangent_kernel import neural_tangent_kernel
    from noetherflow.symbolic import metrics, rules
    from noetherflow.symbolic.broken import broken_symmetries
    from noetherflow.symbolic.discrete import discrete_symmetries
    from noetherflow.symbolic.equivariance import equivariance
    from noetherflow.symbolic.gauge import symmetries
    from noetherflow.symbolic.graph import ArchitectureGraph
    from noetherflow.symbolic.laws import derive
    from noetherflow.symbolic.norm_bounds import norm_bounds

__version__: Final = "0.1.0"

__all__ = [
    "ArchitectureGraph",
    "__version__",
    "align",
    "anchored",
    "augmentation_equivariance",
    "augmentation_momenta",
    "augmented_laws",
    "barrier",
    "between_steps",
    "broken_symmetries",
    "canonical",
    "check_certificate",
    "completeness",
    "critical_decay",
    "currents",
    "data",
    "derive",
    "discrete_symmetries",
    "distance",
    "dropout_penalty",
    "energy_balance",
    "ensembles",
    "equivariance",
    "escape",
    "fixed_subspace",
    "fold_gains",
    "input_groups",
    "line_curvature",
    "local_laws",
    "merge",
    "metrics",
    "mirrors",
    "models",
    "neural_tangent_kernel",
    "norm_bounds",
    "orbit_profile",
    "order_parameters",
    "polynomial_laws",
    "rebalance",
    "rule_of",
    "rules",
    "statistics",
    "symmetries",
    "teleport",
    "trace",
    "transverse_growth",
    "transverse_hessian",
    "twin",
    "unexplained",
    "verify",
    "verify_drift",
    "watch",
    "watch_breaking",
    "without_symmetries",
]

# Public name -> (module, attribute); an empty attribute means the module itself.
_FRONT_DOOR: Final = MappingProxyType(
    {
        "ArchitectureGraph": ("noetherflow.symbolic.graph", "ArchitectureGraph"),
        "align": ("noetherflow.bridge.align", "align"),
        "anchored": ("noetherflow.bridge.anchoring", "anchored"),
        "augmentation_equivariance": ("noetherflow.bridge.augmentation_equivariance", "augmentation_equivariance"),
        "augmentation_momenta": ("noetherflow.bridge.augmentation_momenta", "augmentation_momenta"),
        "augmented_laws": ("noetherflow.bridge.augmented_laws", "augmented_laws"),
        "barrier": ("noetherflow.numeric.barrier", "barrier"),
        "between_steps": ("noetherflow.bridge.between_steps", "between_steps"),
        "broken_symmetries": ("noetherflow.symbolic.broken", "broken_symmetries"),
        "canonical": ("noetherflow.bridge.canonical", "canonical"),
        "check_certificate": ("noetherflow.bridge.rechecking", "check_certificate"),
        "completeness": ("noetherflow.bridge.completeness", "completeness"),
        "critical_decay": ("noetherflow.bridge.critical_decay", "critical_decay"),
        "currents": ("noetherflow.bridge.currents", "currents"),
        "data": ("noetherflow.numeric.data", ""),
        "derive": ("noetherflow.symbolic.laws", "derive"),
        "discrete_symmetries": ("noetherflow.symbolic.discrete", "discrete_symmetries"),
        "distance": ("noetherflow.bridge.distance", "distance"),
        "dropout_penalty": ("noetherflow.bridge.dropout_penalty", "dropout_penalty"),
        "energy_balance": ("noetherflow.bridge.energy_balance", "energy_balance"),
        "ensembles": ("noetherflow.numeric.ensembles", ""),
        "equivariance": ("noetherflow.symbolic.equivariance", "equivariance"),
        "escape": ("noetherflow.bridge.escape", "escape"),
        "fixed_subspace": ("noetherflow.bridge.fixed_subspace", "fixed_subspace"),
        "fold_gains": ("noetherflow.bridge.fold_gains", "fold_gains"),
        "input_groups": ("noetherflow.numeric.input_groups", ""),
        "line_curvature": ("noetherflow.numeric.line_curvature", "line_curvature"),
        "local_laws": ("noetherflow.bridge.local_laws", "local_laws"),
        "merge": ("noetherflow.numeric.merging", "merge"),
        "metrics": ("noetherflow.symbolic.metrics", ""),
        "mirrors": ("noetherflow.bridge.mirrors", "mirrors"),
        "models": ("noetherflow.numeric.models", ""),
        "neural_tangent_kernel": ("noetherflow.numeric.tangent_kernel", "neural_tangent_kernel"),
        "norm_bounds": ("noetherflow.symbolic.norm_bounds", "norm_bounds"),
        "orbit_profile": ("noetherflow.bridge.orbit_profile", "orbit_profile"),
        "order_parameters": ("noetherflow.bridge.order_parameters", "order_parameters"),
        "polynomial_laws": ("noetherflow.bridge.polynomial_laws", "polynomial_laws"),
        "rebalance": ("noetherflow.bridge.rebalance", "rebalance"),
        "rule_of": ("noetherflow.bridge.optimizers", "rule_of"),
        "rules": ("noetherflow.symbolic.rules", ""),
        "statistics": ("noetherflow.numeric.statistics", ""),
        "symmetries": ("noetherflow.symbolic.gauge", "symmetries"),
        "teleport": ("noetherflow.bridge.teleport", "teleport"),
        "trace": ("noetherflow.bridge.trace", "trace"),
        "transverse_growth": ("noetherflow.bridge.collapse", "transverse_growth"),
        "transverse_hessian": ("noetherflow.bridge.transverse", "transverse_hessian"),
        "twin": ("noetherflow.bridge.twins", "twin"),
        "unexplained": ("noetherflow.bridge.unexplained", "unexplained"),
        "verify": ("noetherflow.bridge.verify", "verify"),
        "verify_drift": ("noetherflow.bridge.verify_drift", "verify_drift"),
        "watch": ("noetherflow.bridge.watch", "watch"),
        "watch_breaking": ("noetherflow.bridge.breaking", "watch_breaking"),
        "without_symmetries": ("noetherflow.bridge.asymmetric", "without_symmetries"),
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
