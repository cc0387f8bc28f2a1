"""What `make bench` writes, and how `make bench-check` judges it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def tables() -> Any:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "tables.py"
    spec = importlib.util.spec_from_file_location("bench_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_ratio_falls_behind_by_more_than_a_fifth(tables: Any) -> None:
    found = {"a": 7.9, "b": 8.0, "c": 30.0, "only now": 0.1, "d": float("nan")}
    reference = {"a": 10.0, "b": 10.0, "c": 10.0, "only then": 5.0, "d": 1.0}
    lines = tables.fallen_behind(found, reference)
    assert [line.split(":")[0] for line in lines] == ["a", "d"]
    assert lines[0] == "a: 7.9, was 10 (-21%)"
    assert tables.fallen_behind(found, reference, tolerance=0.3) == ["d: nan, was 1 (+nan%)"]


def test_the_geometric_mean(tables: Any) -> None:
    assert tables.geometric_mean([2.0, 8.0]) == pytest.approx(4)


def test_tables_are_written_with_their_reference_and_judged(tables: Any, tmp_path: Path) -> None:
    page, reference = tmp_path / "bench.md", tmp_path / "reference.json"
    first = tables.Tables()
    for column, value in (("T=2", 4.0), ("T=3", 9.0)):
        first.ratio("Speed", "mgda", column, value)
        first.mean("Speed", "mgda", ["T=2", "T=3"], "mean")
    first.cell("Speed", "pcgrad", "T=2", "none")
    first.skip("LibMTL: not found")
    first.write(page)
    first.refer(reference)
    text = page.read_text(encoding="utf-8")
    assert "| | T=2 | T=3 | mean |" in text
    assert "| mgda | 4.00 | 9.00 | **6.00** |" in text
    assert "| pcgrad | none |  |  |" in text
    assert text.endswith("### Not measured\n\n- LibMTL: not found\n")
    assert "short run" not in text
    assert json.loads(reference.read_text())["ratios"] == {"Speed, mgda, T=2": 4.0, "Speed, mgda, T=3": 9.0}
    second = tables.Tables(quick=True)
    second.ratio("Speed", "mgda", "T=3", 7.3)
    assert second.judge(reference) == ""
    assert "short run" in second.markdown()
    second.ratio("Speed", "mgda", "T=3", 7.1)
    assert "1 of 1 ratios fell behind by more than 20%:\nSpeed, mgda, T=3: 7.1, was 9 (-21%)" in second.judge(
        reference
    )


def test_of_two_looks_the_better_ratio_counts(tables: Any, tmp_path: Path) -> None:
    reference, look = tmp_path / "reference.json", tmp_path / "new" / "look.json"
    checks = []
    for a, b in ((10.0, 10.0), (5.0, 9.0), (9.0, 5.0), (5.0, float("nan"))):
        check = tables.Tables(quick=True)
        check.keep("a", a)
        check.keep("b", b)
        checks.append(check)
    checks[0].refer(reference)
    assert "a: 5" in checks[1].judge(reference)
    checks[1].remember(look)
    assert "b: 5" in checks[2].judge(reference)
    assert checks[2].judge(reference, look) == ""
    assert "2 of 2 ratios" in checks[3].judge(reference, look)
    checks[2].refer(reference, look)
    assert json.loads(reference.read_text())["ratios"] == {"a": 5.0, "b": 5.0}


def test_goals_are_met_or_missed(tables: Any) -> None:
    full = tables.Tables()
    full.ratio("Speed", "mgda", "T=2", 4.0)
    full.ratio("Bound", "mgda", "T=2", 5.0, judged=False)
    assert full.mean("Bound", "mgda", ["T=3"], "mean") is None
    assert full.mean("Bound", "mgda", ["T=2", "T=3"], "mean") == pytest.approx(5)
    full.mean("Speed", "mgda", ["T=2"], "mean", 3.0, 5.0)
    full.goal("Cost", 1.02, 1.021, most=True)
    text = full.markdown()
    assert "### Goals: 1 of 2 met" in text
    assert "| | goal | found | memory allows | |" in text
    assert "| Speed, mgda, mean | at least 3 | 4.00 | 5.00 | met |" in text
    assert "| Cost | at most 1.02 | 1.021 |  | **missed** |" in text
    assert "| mgda | 5.00 | **5.00** |" in text
    assert full.ratios == {"Speed, mgda, T=2": 4.0}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_bound_reads_all_twice_and_writes_the_first(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from memory import Pass

    draw = torch.Generator().manual_seed(count)
    gradients, others = (torch.randint(-9, 9, (count, 200_001), generator=draw).float() for _ in range(2))
    before = gradients.clone()
    run = Pass(gradients, others)
    for _ in range(2):
        gradients.copy_(before)
        run()
        assert [float(sums.sum()) for sums in run.sums] == [float(before.sum()), float(others.sum())]
        assert torch.equal(gradients[0], before.sum(0))
        assert torch.equal(gradients[1:], before[1:])
    sys.modules.pop("memory")


def test_the_machine_is_told_in_general_terms(tables: Any) -> None:
    assert "cores of" in tables.machine()
    assert "torch" in tables.machine()
