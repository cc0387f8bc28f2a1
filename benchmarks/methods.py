"""The methods that mtlbench and a peer both have, with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchjd import aggregation

from mtlbench.contracts import Weighting
from mtlbench.registry import Registry
from mtlbench.testing import tiny_tasks

OURS = {"cagrad": "cagrad[c=0.5,rescale=1]", "gradvac": "gradvac[beta=0.5]"}
"""Specs, where the default is not what the peers have."""

TORCHJD: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {
    "mgda": (lambda count: aggregation.MGDAWeighting(), lambda count: aggregation.MGDA()),
    "pcgrad": (lambda count: aggregation.PCGradWeighting(), lambda count: aggregation.PCGrad()),
    "gradvac": (lambda count: aggregation.GradVacWeighting(0.5), lambda count: aggregation.GradVac(0.5)),
    "cagrad": (lambda count: aggregation.CAGradWeighting(0.5), lambda count: aggregation.CAGrad(0.5)),
    "nash": (lambda count: aggregation.NashMTL(count), lambda count: aggregation.NashMTL(count)),
    "fairgrad": (lambda count: aggregation.FairGradWeighting(1.0), lambda count: aggregation.FairGrad(1.0)),
    "imtl-g": (lambda count: aggregation.IMTLGWeighting(), lambda count: aggregation.IMTLG()),
    "aligned": (lambda count: aggregation.AlignedMTLWeighting(), lambda count: aggregation.AlignedMTL()),
    "upgrad": (lambda count: aggregation.UPGradWeighting(), lambda count: aggregation.UPGrad()),
    "dualproj": (lambda count: aggregation.DualProjWeighting(), lambda count: aggregation.DualProj()),
    "config": (lambda count: aggregation.ConFIG(), lambda count: aggregation.ConFIG()),
    "krum": (lambda count: aggregation.KrumWeighting(0), lambda count: aggregation.Krum(0)),
}
"""TorchJD's: weights from a Gram matrix, and the update from gradients."""

SOLVER_GOALS: dict[str, dict[str, float]] = {
    "LibMTL": {
        "mgda": 62,
        "pcgrad": 11,
        "gradvac": 21,
        "cagrad": 18,
        "nash": 259,
        "fairgrad": 26,
        "imtl-g": 6.6,
        "aligned": 4.2,
        "upgrad": 2.8,
    },
    "TorchJD": {
        "mgda": 24,
        "pcgrad": 7,
        "gradvac": 16,
        "cagrad": 38,
        "nash": 261,
        "fairgrad": 25,
        "imtl-g": 2.3,
        "aligned": 2.8,
        "upgrad": 2.2,
    },
}
"""How far ahead the weights from a Gram matrix were to be, in the mean of T <= 10."""

UPDATE_GOALS: dict[str, dict[str, float]] = {
    "LibMTL": {
        "mgda": 20,
        "pcgrad": 9,
        "gradvac": 12,
        "cagrad": 5,
        "nash": 40,
        "fairgrad": 7,
        "imtl-g": 8,
        "aligned": 4,
        "upgrad": 3.5,
        "gradnorm": 10,
        "sdmgrad": 5,
        "db-mtl": 4,
        "moco": 2.5,
    },
    "TorchJD": {
        "mgda": 3,
        "pcgrad": 2,
        "gradvac": 3,
        "cagrad": 7,
        "nash": 40,
        "fairgrad": 7,
        "imtl-g": 1.5,
        "aligned": 1.5,
        "upgrad": 1.5,
    },
}
"""The same of the update from gradients."""

OF_GRADIENTS = {"nash", "config"}
"""Methods of which TorchJD has no weights from a Gram matrix: it gets gradients, and gives the update."""


def ours(method: str, count: int) -> Weighting:
    """Return mtlbench's ``method`` for ``count`` tasks."""
    tasks = tiny_tasks(count)
    made: Weighting = Registry().choose("weightings", OURS.get(method, method)).build(tasks=tasks)
    return made


def torchjd(method: str, count: int, *, of_gradients: bool) -> Callable[[Tensor], Tensor] | str:
    """Return TorchJD's, or why it cannot be had."""
    if method == "krum" and count < 3:
        return "TorchJD's krum: it needs three tasks"
    if method not in TORCHJD:
        return f"TorchJD has no {method}"
    try:
        made: Callable[[Tensor], Tensor] = TORCHJD[method][of_gradients](count)
    except ImportError as error:
        return f"TorchJD's {method}: {str(error).splitlines()[0]}"
    return made
