"""The methods, by the names that configs use. `dualign.merging.method_specs` says what they take."""

from collections.abc import Callable, Mapping

from dualign.merging.methods.arcee_fusion import arcee_fusion
from dualign.merging.methods.breadcrumbs import breadcrumbs, breadcrumbs_ties
from dualign.merging.methods.dare import dare_linear, dare_ties
from dualign.merging.methods.della import della, della_linear
from dualign.merging.methods.karcher import karcher
from dualign.merging.methods.linear import linear
from dualign.merging.methods.model_stock import model_stock
from dualign.merging.methods.multislerp import multislerp
from dualign.merging.methods.nearswap import nearswap
from dualign.merging.methods.nuslerp import nuslerp
from dualign.merging.methods.passthrough import passthrough
from dualign.merging.methods.sce import sce
from dualign.merging.methods.slerp import slerp
from dualign.merging.methods.task_arithmetic import task_arithmetic
from dualign.merging.methods.tensors import Combine
from dualign.merging.methods.ties import ties

FUNCTIONS: Mapping[str, Callable[..., Combine]] = {
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "model_stock": model_stock,
    "sce": sce,
    "nearswap": nearswap,
    "arcee_fusion": arcee_fusion,
    "passthrough": passthrough,
}
