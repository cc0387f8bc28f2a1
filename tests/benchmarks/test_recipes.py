"""Recipes name settings and plugins that are there, and the relatedness table is what its records say."""

from __future__ import annotations

import math
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy.stats import t

from mtlbench.config import RunConfig
from mtlbench.registry import Registry
from mtlbench.results import Record
from mtlbench.sweep.grid import read

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "benchmarks" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_what_is_there(recipe: Path) -> None:
    registry = Registry()
    configs = read(recipe, {})
    assert configs
    for config in configs:
        for kind, spec in (
            ("architectures", config.arch),
            ("weightings", config.weight),
            ("datasets", config.data),
            ("encoders", config.encoder or "unet"),
            *(("auxiliary", name) for name in config.aux),
        ):
            registry.choose(kind, spec)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_commands_of_a_recipe_name_it_and_flags_that_are_there(recipe: Path) -> None:
    text = re.sub(r"\\\n# *", "", recipe.read_text(encoding="utf-8"))
    commands = [shlex.split(line[1:], comments=True) for line in text.splitlines() if "mtlbench " in line]
    commands = [command for command in commands if {"run", "sweep", "prepare"} & set(command)]
    known = {name.replace("_", "-") for name in vars(RunConfig())} | {"config", "source", "size"}
    used = [command for command in commands if str(recipe.relative_to(ROOT)) in command]
    assert used
    for command in commands:
        flags = {word[2:] for word in command if word.startswith("--")}
        assert flags <= known, command


def test_the_relatedness_table_is_paired_by_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import relatedness

    def record(p: float, draw: int, y1: float, y2: float) -> Record:
        spec: dict[str, Any] = {
            "dataset": {"name": "relatedness", "parameters": {"p": p, "seed": draw, "count": 1000}},
            "architecture": {"name": "hps", "parameters": {}},
            "encoder": {"name": "mlp", "parameters": {"hidden": [4]}},
            "tasks": ["y1", "y2"],
        }
        return Record({"spec": spec, "status": "ok", "metrics": {"y1": {"mse": y1}, "y2": {"mse": y2}}})

    records = [record(0.2, 0, 2.0, 4.0), record(0.2, 1, 5.0, 5.0), record(1.0, 0, 1.0, 1.0)]
    records += [record(1.0, 1, 2.0, 2.0)]
    lines = relatedness.table(relatedness.errors(records))
    sys.modules.pop("relatedness")
    # Means 3 and 5, then 1 and 2: ratios of a third and of two fifths.
    half = t.ppf(0.975, 1)
    logs = [math.log(1 / 3), math.log(2 / 5)]
    middle, spread = sum(logs) / 2, abs(logs[0] - logs[1]) / 2
    ends = [f"{math.exp(middle + side * half * spread):.2f}" for side in (-1, 1)]
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells == [
        "`hps on mlp[hidden=[4]]`", "1,000", f"4.00 ± {half:.2f}", f"1.50 ± {0.5 * half:.2f}",
        f"{math.exp(middle):.2f} ({ends[0]} to {ends[1]})",
        f"p = {2 * t.sf(abs(middle) / spread, 1):.2g}, 2 draws",
    ]  # fmt: skip


def test_the_auxiliary_table_has_the_target_beside_its_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import auxiliary

    def metric(helping: bool) -> dict[str, Any]:
        return {"iou": {"unit": "1", "higher_is_better": True, "version": 1, "auxiliary": helping}}

    def record(name: str, seed: int, iou: float, baseline: str | None = None) -> Record:
        tasks = ["mask", "edges"] if baseline else ["mask"]
        spec = {
            "tasks": tasks,
            "seed": seed,
            "architecture": {"name": "hps" if baseline else "stl"},
            "weighting": {"name": "fixed", "parameters": {"weights": [1.0, 0.1]}},
        }
        data = {"title": "pets", "metrics": {"mask": metric(False), "edges": metric(True)}}
        return Record(
            {"run_id": name, "status": "ok", "spec": spec, "data": data, "metrics": {"mask": {"iou": iou}},
             "baselines": {"mask": baseline} if baseline else {}}
        )  # fmt: skip

    records = [record("a", 0, 0.5), record("b", 0, 0.6, "a"), record("c", 1, 0.5), record("d", 1, 0.4, "c")]
    lines = auxiliary.table(auxiliary.rows(SimpleNamespace(records=lambda: iter(records))))
    sys.modules.pop("auxiliary")
    assert len(lines) == 3
    half = t.ppf(0.975, 1)
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells == [
        "edges", "`hps+fixed [1.0, 0.1]`", f"0.5000 ± {0.1 * half:.4f}", "0.5000 ± 0.0000",
        f"+0.0 ± {20 * half:.1f} %", "2",
    ]  # fmt: skip
