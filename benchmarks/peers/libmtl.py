"""LibMTL's weightings on given gradients, or in a step of training.

Its code is looked for in the checkout that MTLBENCH_LIBMTL names, else where `get.py` puts the release of
PyPI. That release lacks Nash_MTL, FairGrad, Aligned_MTL, UPGrad, SDMGrad, MoCo and DB_MTL, which came later,
and its CAGrad is written for three tasks.

Shims, since it was written for older versions:

- the packages ``LibMTL`` and ``LibMTL.weighting`` are made empty, and a method's module is imported alone:
  their own start imports every method, a trainer and torch_geometric;
- ``torch.symeig``, which torch removed, is ``torch.linalg.eigh`` (Aligned_MTL);
- ``numpy.alltrue``, which NumPy removed, is ``numpy.all`` (SDMGrad);
- its trainer writes to ``cuda:0``; here the device is the processor.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NAMES = {
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "gradvac": "GradVac",
    "cagrad": "CAGrad",
    "nash": "Nash_MTL",
    "fairgrad": "FairGrad",
    "imtl-g": "IMTL",
    "aligned": "Aligned_MTL",
    "upgrad": "UPGrad",
    "gradnorm": "GradNorm",
    "sdmgrad": "SDMGrad",
    "moco": "MoCo",
    "db-mtl": "DB_MTL",
}
"""Our names and theirs, of what both have."""

DEFAULTS = {
    "mgda_gn": "none",
    "beta": 0.5,
    "GradVac_beta": 0.5,
    "GradVac_group_type": 0,
    "calpha": 0.5,
    "rescale": 1,
    "update_weights_every": 1,
    "optim_niter": 20,
    "max_norm": 1.0,
    "FairGrad_alpha": 1.0,
    "UPGrad_norm_eps": 1e-4,
    "UPGrad_reg_eps": 1e-4,
    "alpha": 1.5,
    "GradNorm_alpha": 1.5,
    "SDMGrad_lamda": 0.3,
    "SDMGrad_niter": 20,
    "MoCo_beta": 0.5,
    "MoCo_beta_sigma": 0.5,
    "MoCo_gamma": 0.1,
    "MoCo_gamma_sigma": 0.5,
    "MoCo_rho": 0.0,
    "DB_beta": 0.9,
    "DB_beta_sigma": 0.0,
}
"""What its command line gives every method unless told otherwise."""


class PeerMissingError(Exception):
    """A peer, or a method of it, cannot be had; the message names it and says why."""


def weighting(
    method: str, parameters: Sequence[nn.Parameter], count: int, jacobians: Iterator[Tensor] | None = None
) -> Any:
    """Return its ``method`` (our name) for ``count`` tasks that share ``parameters``.

    Its ``backward(losses, **DEFAULTS)`` puts the update into ``.grad``. Where ``jacobians`` are given, it
    takes the next ``[T, P]`` of them instead of gradients of the losses. Raises `PeerMissingError`.
    """
    base = _load(method, count)

    class Weighting(base):  # type: ignore[misc, valid-type]
        def get_share_params(self) -> Sequence[nn.Parameter]:
            return parameters

        def zero_grad_share_params(self) -> None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.zero_()

        if jacobians is not None:

            def _compute_grad(self, losses: Tensor, mode: str, rep_grad: bool = False) -> Tensor:
                return next(jacobians)

    made = Weighting()
    made.task_num, made.device, made.rep_grad = count, torch.device("cpu"), False
    made.epoch, made.train_loss_buffer = 1, np.ones((count, 2))  # GradNorm starts after an epoch
    made.init_param()
    return made


def by_features(made: Any, names: Sequence[str], feature: Tensor) -> dict[str, Tensor]:
    """Let the next ``backward`` of a weighting weigh what arrives at ``feature`` (its option ``rep_grad``).

    Returns what each task's head has to read instead.
    """
    made.rep_grad, made.task_name, made.rep = True, list(names), feature
    made.rep_tasks = {name: feature.detach().clone().requires_grad_() for name in names}
    read: dict[str, Tensor] = made.rep_tasks
    return read


def _load(method: str, count: int) -> type:
    folder = Path(os.environ.get("MTLBENCH_LIBMTL") or Path(__file__).parent / "_installed") / "LibMTL"
    name = NAMES[method]
    if not folder.is_dir():
        raise PeerMissingError("LibMTL: not found; python benchmarks/peers/get.py installs it")
    file = folder / "weighting" / f"{name}.py"
    if not file.is_file():
        raise PeerMissingError(
            f"LibMTL's {name}: not in the release on PyPI; MTLBENCH_LIBMTL may name a checkout"
        )
    if count != 3 and "reshape(1,3)" in file.read_text(encoding="utf-8"):
        raise PeerMissingError(
            f"LibMTL's {name}: written for three tasks in this release; MTLBENCH_LIBMTL may name a checkout"
        )
    for package, path in (("LibMTL", folder), ("LibMTL.weighting", folder / "weighting")):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(path)]
    torch.symeig = lambda matrix, eigenvectors: torch.linalg.eigh(matrix)  # type: ignore[attr-defined]
    np.alltrue = np.all  # type: ignore[attr-defined]
    try:
        loaded: type = getattr(importlib.import_module(f"LibMTL.weighting.{name}"), name)
    except ImportError as error:
        raise PeerMissingError(f"LibMTL's {name}: {error}") from error
    return loaded
