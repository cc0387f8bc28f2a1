from __future__ import annotations

import csv
import io
import json
import math
import random
from pathlib import Path

import pytest
import stores
from rich.console import Console
from scipy import stats

from mtlbench.errors import MtlbenchError
from mtlbench.leaderboard.board import Board, Row, Table, build
from mtlbench.leaderboard.formats import board_json, command, markdown, score, table_csv, takeaway
from mtlbench.leaderboard.page import page
from mtlbench.leaderboard.terminal import show
from mtlbench.results import Record, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stores.fill(tmp_path / "results")


def only(board: Board) -> Table:
    assert len(board.tables) == 1
    return board.tables[0]


def row(table: Table, label: str) -> Row:
    return next(row for row in table.rows if row.label == label)


def test_delta_is_paired_with_the_baselines_of_each_seed(store: Store) -> None:
    found = row(only(build(store)), "mmoe+mgda")
    by_id = {record.run_id: record.values for record in store.records()}
    expected = []
    for seed in found.seeds:
        values = seed.records[0].values
        gains: dict[str, list[float]] = {"segmentation": [], "depth": []}
        for task, gain in gains.items():
            base = by_id[values["baselines"][task]]
            assert base["spec"]["seed"] == seed.seed
            for name, metric in stores.METRICS[task].items():
                change = values["metrics"][task][name] / base["metrics"][task][name] - 1
                gain.append(100 * change * (1 if metric["higher_is_better"] else -1))
        expected.append((sum(gains["segmentation"]) / 2 + gains["depth"][0]) / 2)
    assert list(found.deltas.values()) == pytest.approx(expected)
    assert found.delta is not None
    assert found.delta.mean == pytest.approx(sum(expected) / 3)
    low, high = stats.t.interval(0.95, 2, loc=sum(expected) / 3, scale=stats.sem(expected))
    assert found.delta.half_width == pytest.approx((high - low) / 2)


def test_rows_stand_by_delta_and_the_best_is_marked(store: Store) -> None:
    table = only(build(store))
    deltas = [row.delta.mean for row in table.rows if row.delta]
    assert deltas == sorted(deltas, reverse=True)
    runs = [row for row in table.rows if row.kind == "run"]
    assert [row.best for row in runs] == [True] + [False] * (len(runs) - 1)
    assert table.reference == "hps+ew"
    assert row(table, "hps+ew").versus is None
    assert all(r.versus is not None for r in runs if r.label != "hps+ew")
    assert row(table, "single-task").delta is not None
    assert row(table, "single-task").kind == "baseline"


def test_another_reference_may_be_named_and_a_wrong_one_is_answered(store: Store) -> None:
    assert only(build(store, "mtan+rlw")).reference == "mtan+rlw"
    with pytest.raises(MtlbenchError, match=r"no row 'mtan\+rl'.*mtan\+rlw"):
        build(store, "mtan+rl")


def test_failed_missing_and_undefined_runs_are_rows(store: Store) -> None:
    failed = stores.record("cgc", "nash", 0, None, status="failed", reason="nash: residual 0.1")
    store.add(failed, stores.cost(1))
    alone = stores.record(
        "ple", "ew", 0, stores.scores(stores.METRICS, random.Random(1)), baselines={"depth": "f" * 16}
    )
    store.add(alone, stores.cost(1))
    table = only(build(store))
    assert row(table, "cgc+nash").missing == ("seed 0: failed: nash: residual 0.1",)
    assert row(table, "cgc+nash").delta is None
    assert row(table, "ple+ew").missing == ("seed 0: Δ-MTL undefined: no baseline",)
    for text in (markdown(build(store)), page(build(store))):
        assert "nash: residual 0.1" in text


def test_a_run_whose_process_died_has_no_part_in_times_and_sizes(tmp_path: Path) -> None:
    store = stores.fill(tmp_path, ("hps",), ("ew",), range(1, 3))
    before = row(only(build(store)), "hps+ew")
    died = stores.record("hps", "ew", 0, None, status="failed", reason="its process died 2 times")
    died.values["parameters"] = {"total": 0}  # type: ignore[index]
    store.add(died, stores.cost(0))
    after = row(only(build(store)), "hps+ew")
    assert after.missing == ("seed 0: failed: its process died 2 times",)
    assert (after.seconds, after.parameters) == (before.seconds, before.parameters)
    assert before.parameters == 1010


def test_a_baseline_near_zero_is_said_not_divided(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = stores.record("stl", "ew", 0, {"depth": {"abs": 0.0}}, tasks=["depth"])
    run = stores.record(
        "hps", "ew", 0, {"depth": {"abs": 0.1}}, tasks=["depth"], baselines={"depth": base.run_id}
    )
    for record in (base, run):
        store.add(record, stores.cost(1))
    assert row(only(build(store)), "hps+ew").missing == ("seed 0: Δ-MTL undefined: the baseline is zero",)


def changed(record: Record, **values: object) -> Record:
    return Record({**record.values, **values})


def test_what_is_not_comparable_never_shares_a_table(tmp_path: Path) -> None:
    store = stores.fill(tmp_path, archs=["hps"], weights=["ew"], seeds=[0])
    stores.fill(tmp_path, archs=["hps"], weights=["ew"], seeds=[0], fingerprint="f" * 16)
    stores.fill(tmp_path, archs=["hps"], weights=["ew"], seeds=[0], epochs=6)
    scores = stores.scores(["depth"], random.Random(0))
    store.add(stores.record("hps", "ew", 0, scores, tasks=["depth"]), stores.cost(1))
    original = stores.METRICS["depth"]["abs"]["version"]
    stores.METRICS["depth"]["abs"]["version"] = 2
    try:
        stores.fill(tmp_path, archs=["hps"], weights=["ew"], seeds=[0])
    finally:
        stores.METRICS["depth"]["abs"]["version"] = original
    board = build(store)
    assert len(board.tables) == 5
    assert len({table.name for table in board.tables}) == 5
    assert all(
        len(found.records) == 1 for t in board.tables for r in t.rows if r.kind == "run" for found in r.seeds
    )


def test_parameters_are_named_where_they_vary_and_code_where_it_must(tmp_path: Path) -> None:
    store = stores.fill(tmp_path, archs=["hps", "mmoe"], weights=["ew"], seeds=[0])
    record = next(r for r in store.records() if r.folder[1] == "mmoe+ew")
    spec = json.loads(json.dumps(record.values["spec"]))
    spec["architecture"]["parameters"]["experts"] = 4
    from mtlbench.results import run_id

    values = {**record.values, "spec": spec}
    store.add(Record({**values, "run_id": run_id(values)}), stores.cost(1))
    labels = {row.label for row in only(build(store)).rows}
    assert labels == {"hps+ew", "mmoe[experts=3]+ew", "mmoe[experts=4]+ew", "single-task"}
    stores.fill(tmp_path, archs=["hps"], weights=["ew"], seeds=[0, 1], source="bb")
    labels = {row.label for row in only(build(store)).rows}
    assert sum(label.startswith("hps+ew, code ") for label in labels) == 2


def test_auxiliary_tasks_are_shown_and_enter_nothing(store: Store) -> None:
    table = only(build(store))
    assert [c.auxiliary for c in table.columns] == [False, False, False, True]
    base = row(table, "single-task")
    assert ("edges", "mse") not in base.cells
    assert base.rank is not None


def test_pareto_front_by_brute_force(store: Store) -> None:
    table = only(build(store))
    placed = [r for r in table.rows if r.delta is not None and r.seconds is not None]
    for r in placed:
        beaten = any(
            o.seconds <= r.seconds
            and o.delta.mean >= r.delta.mean
            and (o.seconds, o.delta.mean) != (r.seconds, r.delta.mean)
            for o in placed
        )
        assert r.front != beaten, r.label


def test_times_of_different_machines_make_no_front(store: Store) -> None:
    scores = stores.scores(stores.METRICS, random.Random(3))
    record = next(r for r in store.records() if r.folder[1] == "hps+ew")
    store.add(
        stores.record("cgc", "ew", 0, scores, baselines=record.values["baselines"]),
        stores.cost(1, "another card"),
    )
    table = only(build(store))
    assert not any(row.front for row in table.rows)
    assert "different machines" in page(build(store))


def test_every_format_says_the_same(store: Store) -> None:
    board = build(store)
    table = only(board)
    content = json.loads(board_json(board))
    lines = list(csv.DictReader(io.StringIO(table_csv(board), newline="")))
    text = markdown(board)
    for r, kept in zip(table.rows, content["tables"][0]["rows"], strict=True):
        assert kept["label"] == r.label
        assert kept["delta_mtl"]["mean"] == pytest.approx(r.delta.mean, rel=1e-5)
        line = next(line for line in lines if line["method"] == r.label and line["metric"] == "delta_mtl")
        assert float(line["mean"]) == kept["delta_mtl"]["mean"]
        assert f"| {r.label} | {r.delta.mean:+.2f}" in text


def test_the_same_bytes_whatever_the_order_of_files(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    records = list(store.records())
    random.Random(5).shuffle(records)
    for record in records:
        other.add(record, store.cost(record))
    one, two = build(store), build(other)
    for render in (page, markdown, table_csv, board_json):
        assert render(one) == render(two)


def test_a_row_tells_the_command_that_makes_it_again(store: Store) -> None:
    table = only(build(store))
    assert command(row(table, "mmoe+rlw"), table) == (
        "mtlbench run --arch 'mmoe[experts=3]' --data 'scenes[size=64]' --encoder 'unet[depth=3]'"
        " --tasks segmentation,depth,edges --weight rlw --epochs 5 --seeds 0,1,2"
    )
    assert "--arch stl" in command(row(table, "single-task"), table)


@pytest.mark.parametrize("width", [80, 120, 250])
def test_the_terminal_wraps_by_columns_and_loses_nothing(store: Store, width: int) -> None:
    board = build(store)
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(show(board))
    lines = captured.get().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    for found in only(board).rows:
        said = " ".join(line for line in lines if line.startswith(f" {found.label} "))
        for column in only(board).columns:
            assert score(found.cells.get(column.key)) in said
    assert sum(line.startswith(" method") for line in lines) == {80: 3, 120: 2, 250: 1}[width]


def test_what_a_table_shows_is_said_in_words(store: Store) -> None:
    found = only(build(store))
    best = found.rows[0]
    assert best.best
    assert best.delta is not None
    assert takeaway(found).startswith(f"{best.label} is best with a Δ-MTL of {best.delta.mean:+.2f} ± ")
    tied = sum(row.tied is True for row in found.rows)
    assert 0 < tied < 8
    assert f"{tied} of the other 8 rows" in takeaway(found)
    alone = only(build(stores.fill(store.root.parent / "one", seeds=[0], archs=["hps"], weights=["ew"])))
    assert "for one seed" in takeaway(alone)


def test_an_empty_store_is_an_empty_board(tmp_path: Path) -> None:
    board = build(Store(tmp_path))
    assert board.tables == ()
    assert "no records yet" in page(board)


def test_ranks_over_datasets_only_where_there_are_enough(tmp_path: Path) -> None:
    for i in range(8):
        store = stores.fill(tmp_path, seeds=[0], data=f"set{i}", fingerprint=f"{i:016x}")
    board = build(store)
    assert board.ranking is not None
    assert len(board.ranking.methods) == 9
    assert math.isclose(sum(board.ranking.ranks), 45)
    shown = page(board)
    assert "the 9 methods that all 8 datasets have" in shown
    picture = shown[shown.index('<svg class="plot" viewBox') :].partition("</svg>")[0]
    assert 'aria-label="Mean ranks over 8 datasets. Not told apart:' in picture
    assert picture.count('class="leader"') == 9
    assert picture.count('class="alike"') == len(board.ranking.groups) > 0
    assert f"critical difference {board.ranking.critical:.2f}" in picture
    assert all(
        f"{m}  {r:.2f}" in picture for m, r in zip(board.ranking.methods, board.ranking.ranks, strict=True)
    )
    assert f"| {board.ranking.methods[0]} | {board.ranking.ranks[0]:.2f} |" in markdown(board)
    assert "from 8 datasets on" in page(build(stores.fill(tmp_path / "one", seeds=[0])))


def test_the_command_knows_encoders_and_heads_by_task_and_switches(tmp_path: Path) -> None:
    from mtlbench.results import run_id

    store = Store(tmp_path)
    values = json.loads(json.dumps(stores.record("hps", "ew", 0, None, status="failed", reason="x").values))
    named = {"name": "unet", "parameters": {"depth": 2}}
    values["spec"]["encoder"] = {"by_task": {"depth": named, "edges": {"name": "conv", "parameters": {}}}}
    values["spec"]["heads"] = {"depth": {"name": "aspp", "parameters": {"rates": [6, 12]}}}
    values["spec"]["sync_bn"] = True
    store.add(Record({**values, "run_id": run_id(values)}), stores.cost(1))
    table = only(build(store))
    found = command(table.rows[0], table)
    assert "--encoder 'depth=unet[depth=2],edges=conv'" in found
    assert "--head 'depth=aspp[rates=[6,12]]'" in found
    assert " --sync-bn --" in found


def test_published_rows_are_marked_and_in_no_statistic(tmp_path: Path) -> None:
    from mtlbench.leaderboard.published import rows

    store = stores.fill(tmp_path, data="nyuv2")
    plain, beside = only(build(store)), only(build(store, published=rows()))
    found = [row for row in beside.rows if row.kind == "published"]
    assert len(found) == 132
    assert all(row.delta is None and row.rank is None and not row.front and row.source for row in found)
    ours = [row for row in beside.rows if row.kind != "published"]
    assert [(row.label, row.delta, row.versus, row.rank) for row in ours] == [
        (row.label, row.delta, row.versus, row.rank) for row in plain.rows
    ]
    assert page(build(store, published=rows())).count('<tr class="published"') == 132
    assert (
        only(build(stores.fill(tmp_path / "other"), published=rows())).rows
        == only(build(Store(tmp_path / "other"))).rows
    )


def test_published_figures_are_in_the_units_of_our_metrics() -> None:
    from mtlbench.contracts import Task
    from mtlbench.leaderboard.published import rows
    from mtlbench.tasks import make_tasks
    from mtlbench_zoo.datasets.nyuv2 import NYUv2

    tasks: tuple[Task, ...] = make_tasks(NYUv2.declared)
    units = {(task.name, metric.name): metric.unit for task in tasks for metric in task.metrics}
    for dataset, row in rows():
        assert dataset == "nyuv2"
        for key, found in row.cells.items():
            assert 0 < found.mean < (90 if units[key] == "deg" else 1.01), (row.label, key)
    # LibMTL's HPS with EW, as printed there: mIoU 54.10, absolute error 0.3771, mean angle 23.53.
    first = next(row for _, row in rows() if row.label == "hps+ew, libmtl-resnet50")
    assert first.cells["segmentation", "iou"].mean == 0.541
    assert first.cells["depth", "abs_error"].mean == 0.3771
    assert first.cells["normals", "angle_mean"].mean == 23.53
