"""Stores of records for tests: the real schema, invented scores."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtlbench.config import RunConfig
from mtlbench.results import Cost, Record, Store, comparability_key, run_id

METRICS: dict[str, dict[str, dict[str, Any]]] = {
    "segmentation": {
        "iou": {"unit": "1", "higher_is_better": True, "version": 1, "auxiliary": False},
        "pixel_accuracy": {"unit": "1", "higher_is_better": True, "version": 1, "auxiliary": False},
    },
    "depth": {"abs": {"unit": "m", "higher_is_better": False, "version": 1, "auxiliary": False}},
    "edges": {"mse": {"unit": "1", "higher_is_better": False, "version": 1, "auxiliary": True}},
}


def spec(arch: str, weight: str, tasks: Iterable[str], seed: int, data: str = "scenes") -> dict[str, Any]:
    def named(name: str, **parameters: Any) -> dict[str, Any]:
        return {"name": name, "parameters": parameters}

    return {
        "architecture": named(arch, experts=3) if arch.startswith("mmoe") else named(arch),
        "weighting": named(weight),
        "encoder": named("unet", depth=3),
        "dataset": named(data, size=64),
        "tasks": list(tasks),
        "grad": "parameters",
        "scale": "published",
        "seed": seed,
    }


def record(
    arch: str,
    weight: str,
    seed: int,
    scores: Mapping[str, Mapping[str, float | None]] | None,
    *,
    tasks: Iterable[str] = METRICS,
    data: str = "scenes",
    fingerprint: str = "0123456789abcdef",
    status: str = "ok",
    reason: str | None = None,
    epochs: int = 5,
    baselines: Mapping[str, str] | None = None,
    source: str = "aa",
) -> Record:
    """Return a record with these test scores; its history is a falling validation loss."""
    config = RunConfig(epochs=epochs)
    names = list(tasks)
    identity: dict[str, Any] = {
        "spec": spec(arch, weight, names, seed, data),
        "protocol": config.protocol,
        "data": {
            "title": f"{data} (invented)",
            "fingerprint": fingerprint,
            "counts": {"train": 100, "val": 20, "test": 20},
            "metrics": METRICS,
        },
        "code": {"mtlbench": "0.1.0", "core": source, "weighting": {"origin": "zoo", "source": source}},
    }
    draw = random.Random(f"{arch}{weight}{seed}{names}")
    history = [
        {
            "epoch": epoch + 1,
            "lr": 1e-3,
            "train": dict.fromkeys(names, 1 / (epoch + 1)),
            "val": {name: {"loss": 1 / (epoch + 1)} for name in names},
            "weights": None,
            "score": 1 / (epoch + 1) + 0.05 * draw.random(),
        }
        for epoch in range(epochs)
    ]
    best = min(history, key=lambda row: row["score"])
    values: dict[str, Any] = {
        "schema": 1,
        "run_id": run_id(identity),
        "attempt": 1,
        "status": status,
        "reason": reason,
        **identity,
        "env": {"python": "3.11", "torch": "2", "device": "cpu", "threads": 1},
        "parameters": {"architecture": 1000, "heads": 10, "weighting": 0, "total": 1010},
        "budget": {"epochs": epochs, "steps": epochs * 7, "samples": epochs * 100},
        "selection": {"epoch": best["epoch"], "score": best["score"]} if status == "ok" else None,
        "metrics": {} if scores is None else {task: dict(found) for task, found in scores.items()},
        "losses": {} if scores is None else dict.fromkeys(scores, 0.5),
        "history": history,
        "baselines": dict(baselines or {}),
    }
    return Record(values | {"comparability": comparability_key(values)})


def cost(seconds: float, device: str = "cpu (x86_64)") -> Cost:
    return Cost(seconds, seconds / 10, 500.0, device, "2026-01-01T00:00:00+00:00")


def scores(tasks: Iterable[str], draw: random.Random, better: float = 0.0) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        found[task] = {}
        for name, metric in METRICS[task].items():
            gain = better + draw.gauss(0, 0.01)
            found[task][name] = 0.5 * (1 + gain if metric["higher_is_better"] else 1 - gain)
    return found


def fill(
    root: Path,
    archs: Iterable[str] = ("hps", "mmoe", "mtan"),
    weights: Iterable[str] = ("ew", "mgda", "rlw"),
    seeds: Iterable[int] = range(3),
    data: str = "scenes",
    **more: Any,
) -> Store:
    """Write runs of every pair with their baselines; a pair's gain depends on its names alone."""
    store = Store(root)
    for seed in seeds:
        draw = random.Random(f"base {seed} {data}")
        baselines = {}
        for task in ("segmentation", "depth"):
            base = record("stl", "ew", seed, scores([task], draw), tasks=[task], data=data, **more)
            store.add(base, cost(10 + seed))
            baselines[task] = base.run_id
        for arch in archs:
            for weight in weights:
                draw = random.Random(f"{arch} {weight} {seed} {data}")
                lift = int(hashlib.sha256(f"{arch} {weight}".encode()).hexdigest(), 16) % 100 / 1000 - 0.05
                run = record(
                    arch, weight, seed, scores(METRICS, draw, lift), data=data, baselines=baselines, **more
                )
                store.add(run, cost(20 + 100 * abs(lift)))
    return store
