"""Runs on several processes, for tests: what to train, how to start a world, and what must be equal."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mtlbench.config import RunConfig
from mtlbench.errors import Interrupted, MtlbenchError
from mtlbench.parallel import ALONE, Ranks
from mtlbench.registry import Registry
from mtlbench.training.loop import Outcome, train
from mtlbench.training.model import Run, build, build_engine
from mtlbench.training.report import Silence

CPU = torch.device("cpu")
FILE = Path(__file__).parents[1] / "plugins" / "plain.py"
SPECS = {"fixed": "fixed[weights=[1,2,0.5]]"}
"""Weightings that have a parameter without a default."""

Case = dict[str, Any]


def make(registry: Registry, case: Case) -> tuple[Run, Any]:
    """Return the run of a case and its dataset."""
    case = {"weight": "ew", "arch": "hps", "grad": "parameters", "data": "plain", "encoder": "smooth"} | case
    data = registry.choose("datasets", case["data"])
    encoder = registry.choose("encoders", case["encoder"])
    dataset = data.build(data_dir=Path("nowhere"))
    names = tuple(task.name for task in dataset.tasks)
    protocol = replace(RunConfig(), batch_size=7, lr=0.02, **case.get("protocol", {"epochs": 1})).protocol
    run = Run(
        registry.choose("architectures", case["arch"]),
        registry.choose("weightings", SPECS.get(case["weight"], case["weight"])),
        dict.fromkeys(names, encoder),
        {},
        data,
        names,
        case["grad"],
        "published",
        3,
        protocol | {"optimizer": case.get("optimizer", "sgd")},
        registry,
        case.get("probe", 0),
        case.get("sync_bn", False),
    )
    return run, dataset


def every_weighting(registry: Registry) -> dict[str, Case]:
    """Return a case for each weighting and space: labels missing by parameters, all there by features."""
    found: dict[str, Case] = {}
    for plugin in registry.plugins("weightings"):
        found[plugin.name] = {"weight": plugin.name, "data": "plain[missing=0.3]"}
        features = {"weight": plugin.name, "grad": "features"}
        run, dataset = make(registry, features)
        try:
            build_engine(run, dataset, *build(run, dataset))
        except MtlbenchError:
            continue
        found[f"{plugin.name}, features"] = features
    return found


MORE: dict[str, Case] = {
    "gates": {"arch": "mmoe", "weight": "mgda", "data": "plain[missing=0.3]"},
    "tasks apart": {"weight": "cagrad", "data": "plain[apart=true]"},
    "weights reused": {"weight": "every[of=nash,k=2]", "grad": "features"},
    "probed": {"weight": "uw", "probe": 1, "data": "plain[missing=0.3]"},
    "clipped adam": {"weight": "pcgrad", "optimizer": "adam", "protocol": {"epochs": 2, "clip": 0.1}},
    "not finite": {"weight": "mgda", "data": "plain[bad=4]"},
}
"""What else must not depend on how many processes or micro-batches there are."""

NORMED: dict[str, Case] = {
    f"norm {weight} {grad}": {
        "weight": weight,
        "grad": grad,
        "encoder": "smooth[norm=true]",
        "sync_bn": True,
        "protocol": {"epochs": 2},
    }
    for weight, grad in zip(
        ["uw", "mgda", "mgda", "graddrop"], ["parameters", "parameters", "features", "features"], strict=True
    )
}
"""Synchronised batch norm, with running statistics."""


def facts(found: Outcome) -> dict[str, Any]:
    """Return all that a run came to, and no clock."""
    kept = {k: v for k, v in vars(found).items() if k not in ("seconds", "step_ms", "peak_mb")}
    return kept | {"test": {name: vars(score) for name, score in found.test.items()}}


def compute(registry: Registry, case: Case, ranks: Ranks = ALONE, **options: Any) -> dict[str, Any]:
    """Train a case in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return facts(train(*make(registry, case), CPU, Silence(), ranks=ranks, **options))
    finally:
        torch.set_default_dtype(before)


def differences(found: Any, expected: Any, tolerance: float, where: str = "") -> list[str]:
    """Return the places where two results differ by more than ``tolerance``, relative to 1 or more."""
    if isinstance(expected, torch.Tensor):
        found, expected = found.tolist(), expected.tolist()
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            return [f"{where}: {sorted(found)} for {sorted(expected)}"]
        pairs = [(f"{where}/{key}", found[key], expected[key]) for key in expected]
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(found) != len(expected):
            return [f"{where}: {len(found)} items for {len(expected)}"]
        pairs = [(f"{where}/{i}", *pair) for i, pair in enumerate(zip(found, expected, strict=True))]
    elif isinstance(expected, float) and isinstance(found, float):
        off = not abs(found - expected) <= tolerance * max(1.0, abs(expected))
        return [f"{where}: {found!r} for {expected!r}"] if off and found != expected else []
    else:
        return [] if found == expected else [f"{where}: {found!r} for {expected!r}"]
    return [line for name, *pair in pairs for line in differences(*pair, tolerance, name)]


def _process(rank: int, size: int, folder: str, cases: dict[str, Case]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/meet", size), rank=rank, world_size=size)
    ranks = Ranks(rank, size)
    registry = Registry([FILE])
    found: dict[str, Any] = {name: compute(registry, case, ranks) for name, case in cases.items()}
    found["stopped"] = _stopped(registry, ranks, Path(folder) / f"state-{rank}.pt")
    found["disagree"] = _disagree(ranks)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _stopped(registry: Registry, ranks: Ranks, checkpoint: Path) -> list[Any]:
    """Stop when the LAST rank is told to, in the middle of an epoch; go on; return that and an even run."""
    case = {"weight": "rlw", "encoder": "smooth[norm=true,drop=0.3]", "protocol": {"epochs": 2}}
    calls = iter(range(100))
    told = ranks.rank == ranks.size - 1
    try:
        compute(registry, case, ranks, checkpoint=checkpoint, stopped=lambda: told and next(calls) == 1)
    except Interrupted:
        wrote = checkpoint.exists()
        torch.rand(7)
        resumed = compute(registry, case, ranks, checkpoint=checkpoint, resume=True)
        return [wrote, resumed, compute(registry, case, ranks)]
    return []


def _disagree(ranks: Ranks) -> str:
    try:
        ranks.agree(str(min(ranks.rank, 1)), "what they do")
    except MtlbenchError as error:
        return str(error)
    return ""


def world(size: int, folder: Path, cases: dict[str, Case]) -> list[dict[str, Any]]:
    """Train the cases on ``size`` processes and return what each of them found."""
    folder.mkdir()
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=_process, args=(r, size, str(folder), cases)) for r in range(size)]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(500)
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    assert [process.exitcode for process in started] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
