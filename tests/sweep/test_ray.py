"""A sweep on a Ray cluster of two simulated nodes, of which one is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench.results import Store
from mtlbench.results.verify import verify

ray = pytest.importorskip("ray", reason="mtlbench[ray] is not installed")

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        found.add_node(**small)
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()


def test_a_sweep_outlives_one_of_its_two_nodes(cluster: Any, tmp_path: Path) -> None:
    results, marks = tmp_path / "results", tmp_path / "marks"
    marks.mkdir()
    slow = PLUGINS / "slow.py"
    command = [
        sys.executable, "-m", "mtlbench", "sweep", "--executor", "ray", "--address", cluster.address,
        "--data", "tiny", "--plugin", str(PLUGINS / "tiny.py"), "--plugin", str(slow),
        "--results", str(results), "--data-dir", str(tmp_path), "--device", "cpu",
        "--weight", f"slow[marks={marks}],ew", "--epochs", "1", "--batch-size", "12", "--tasks", "mask,side",
        "--no-baseline", "--seeds", "0-1",
    ]  # fmt: skip
    sweep = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    node = cluster.worker_nodes.copy().pop()
    deadline = time.monotonic() + 120
    while len(list(marks.iterdir())) < 2 and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # Both nodes train a slow run now. One dies without a word; then the runs may end.
    cluster.remove_node(node, allow_graceful=False)
    workers = [int(mark.name.partition("-")[0]) for mark in marks.iterdir()]
    while all(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    (marks / "go").touch()
    out, err = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, err
    assert err.count("it was lost with its node or its process; it is started once more") == 1
    assert len([mark for mark in marks.iterdir() if mark.name != "go"]) == 3  # one slow run was trained twice
    assert "hps+ew" in out
    store = Store(results)
    assert not list(verify(store))
    assert {path.name: path.read_bytes() for path in store.paths()} == _alone(command, tmp_path)
    assert all(store.cost(record) is not None for record in store.records())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _alone(command: list[str], tmp_path: Path) -> dict[str, bytes]:
    """Train the same runs here, without a cluster."""
    command = [word for word in command if word not in ("--executor", "ray", "--address", command[7])]
    elsewhere = tmp_path / "alone"
    command[command.index("--results") + 1] = str(elsewhere)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return {path.name: path.read_bytes() for path in Store(elsewhere).paths()}


def test_no_cluster_is_one_clear_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from mtlbench.cli import cli
    from mtlbench.errors import MtlbenchError

    arguments = [
        "sweep", "--executor", "ray", "--address", "127.0.0.1:1", "--data", "tiny", "--plugin",
        str(PLUGINS / "tiny.py"), "--results", str(tmp_path), "--no-baseline", "--quiet",
    ]  # fmt: skip
    with pytest.raises(MtlbenchError, match=r"--address: no Ray cluster at '127.0.0.1:1'"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
