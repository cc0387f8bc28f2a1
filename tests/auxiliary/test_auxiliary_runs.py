"""``--aux``: whole runs with auxiliary tasks, as people use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from runs import facts, outcome, outcome_in_pieces

from mtlbench.cli import cli
from mtlbench.errors import MtlbenchError
from mtlbench.experiment import Experiment
from mtlbench.registry import Registry
from mtlbench.results import Store
from mtlbench.results.verify import verify
from mtlbench.sweep.grid import plan, read
from mtlbench.sweep.worker import dump, load

INVERTING = Path(__file__).parents[1] / "plugins" / "inverting.py"
OWN = ["mask", "side", "box"]
Run = Callable[..., Result]
Make = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, tiny_plugin: Path) -> Run:
    def call(*flags: str, data: str = "tiny") -> Result:
        where = ["--results", str(tmp_path / "results"), "--data-dir", str(tmp_path / "data")]
        plugins = ["--plugin", str(tiny_plugin), "--plugin", str(INVERTING)]
        settings = ["--data", data, "--epochs", "2", "--device", "cpu"]
        return CliRunner().invoke(cli, ["run", *settings, *plugins, *where, *flags])

    return call


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("*/*/*.json")]
    return {record["run_id"]: record for record in found if "run_id" in record}


def test_the_reports_set_up(run: Run, tmp_path: Path) -> None:
    flags = ("--aux", "reconstruction", "--weight", "fixed[weights=[1,1,1,0.5]]")
    result = run(*flags)
    assert result.exit_code == 0, result.stderr
    assert "on tiny with reconstruction" in result.stdout
    assert "reconstruction (auxiliary)" in result.stdout
    assert "psnr ↑ [dB]" in result.stdout
    (found,) = lines(run("--json", *flags))
    assert found["spec"]["tasks"] == [*OWN, "reconstruction"]
    assert found["spec"]["auxiliary"] == [{"name": "reconstruction", "parameters": {}}]
    assert sorted(found["baselines"]) == sorted(OWN)
    assert set(found["metrics"]["reconstruction"]) == {"mse", "psnr"}
    assert found["history"][0]["weights"] == {"mask": 1, "side": 1, "box": 1, "reconstruction": 0.5}
    assert found["losses"]["reconstruction"] == pytest.approx(
        found["metrics"]["reconstruction"]["mse"], rel=1e-5
    )
    gains = found["comparison"]["gains"]
    means = [sum(gain["percent"] for gain in gains[task].values()) / len(gains[task]) for task in OWN]
    assert found["comparison"]["delta_mtl"]["tasks"] == pytest.approx(sum(means) / 3)
    assert not list(verify(Store(tmp_path / "results")))


def test_baselines_see_the_runs_data_and_clean_inputs_give_the_plain_scores(run: Run, tmp_path: Path) -> None:
    """Where inputs stay as they are, Δ-MTL with and without auxiliary tasks has one reference."""
    (plain,) = lines(run("--json"))
    (edges,) = lines(run("--json", "--aux", "edges"))
    (noisy,) = lines(run("--json", "--aux", "denoise[std=0.5]"))
    records = stored(tmp_path)
    for found in (edges, noisy):
        assert found["comparability"] != plain["comparability"]
        for base in found["baselines"].values():
            assert records[base]["comparability"] == found["comparability"]
    for task in OWN:
        same, other = (records[r["baselines"][task]]["metrics"][task] for r in (edges, noisy))
        assert same == records[plain["baselines"][task]]["metrics"][task]
        assert other != same or task == "side"
    (alone,) = lines(run("--json", "--aux", "edges", "--tasks", "mask,side,box"))
    assert alone["metrics"] == plain["metrics"]
    assert alone["comparability"] == edges["comparability"], "one table: with and without the task"


def test_auxiliary_tasks_neither_select_nor_score_unless_asked(run: Run) -> None:
    (left_out,) = lines(run("--json", "--aux", "reconstruction,edges"))
    (counted,) = lines(run("--json", "--aux", "reconstruction,edges", "--score-aux"))
    assert left_out["metrics"].keys() == counted["metrics"].keys() == {*OWN, "reconstruction", "edges"}
    assert sorted(counted["baselines"]) == sorted([*OWN, "reconstruction", "edges"])
    assert left_out["comparability"] != counted["comparability"]
    assert left_out["run_id"] != counted["run_id"]
    assert left_out["history"][0]["train"] == counted["history"][0]["train"]
    assert left_out["history"][0]["score"] != counted["history"][0]["score"]
    assert left_out["comparison"]["gains"]["reconstruction"]["mse"]["why"] == "no baseline"
    assert counted["comparison"]["gains"]["reconstruction"]["mse"]["percent"] is not None


def test_tasks_may_name_auxiliary_ones(run: Run) -> None:
    (found,) = lines(run("--json", "--aux", "edges,reconstruction", "--tasks", "edges,mask"))
    assert found["spec"]["tasks"] == ["mask", "edges"]
    assert list(found["baselines"]) == ["mask"]
    (only,) = lines(run("--json", "--aux", "edges", "--tasks", "edges"))
    assert only["baselines"] == {}
    assert only["selection"]["epoch"] in (1, 2)


def test_anybodys_auxiliary_task_works_the_same(run: Run) -> None:
    (found,) = lines(run("--json", "--aux", "negative[level=0.5],edges[sigma=2]", "--weight", "pcgrad"))
    assert found["spec"]["auxiliary"] == [
        {"name": "negative", "parameters": {"level": 0.5}},
        {"name": "edges", "parameters": {"sigma": 2.0, "low": 0.02, "high": 0.05}},
    ]
    assert found["code"]["auxiliary"][0]["origin"] == "inverting.py"
    assert set(found["metrics"]) == {*OWN, "negative", "edges"}
    assert "negative" in [p.name for p in Registry([INVERTING]).plugins("auxiliary")]


@pytest.mark.parametrize(
    ("flags", "data", "message"),
    [
        (("--aux", "egdes"), "tiny", "unknown auxiliary task 'egdes'. Did you mean 'edges'"),
        (("--aux", "denoise[std=-1]"), "tiny", "'std' must be finite and above 0"),
        (("--aux", "denoise[sdt=1]"), "tiny", "unknown parameter 'sdt'"),
        (("--aux", "edges,edges"), "tiny", "'aux' names something twice"),
        (("--aux", "edges,edges[sigma=2]"), "tiny", "two tasks 'edges'"),
        (("--aux", "edges"), "tiny[apart=true]", "each task has inputs of its own"),
        (("--aux", "edges"), "relatedness", "has no images"),
        (("--score-aux",), "tiny", "--score-aux: there is no auxiliary task"),
        (("--aux", "edges", "--tasks", "mask,edge"), "tiny", "no task 'edge'. Did you mean 'edges'"),
    ],
)
def test_a_wrong_word_gets_one_clear_line(run: Run, flags: tuple[str, ...], data: str, message: str) -> None:
    result = run(*flags, data=data)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_config_file_lists_them(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'aux = ["edges", "denoise[std=0.2]"]\nscore-aux = true\nbaseline = false\n'
    )
    (found,) = lines(run("--json", "--config", str(tmp_path / "run.toml")))
    assert found["spec"]["tasks"] == [*OWN, "edges", "denoise"]
    assert found["data"]["metrics"]["denoise"]["psnr"]["auxiliary"] is False


@pytest.mark.parametrize("weight", ["uw", "mgda"])
def test_interrupted_and_resumed_is_the_same_run(experiment: Make, tmp_path: Path, weight: str) -> None:
    made = experiment(aux=("denoise", "edges", "colour"), weight=weight)
    assert facts(outcome_in_pieces(made, tmp_path / "state.pt")) == facts(outcome(made))


def test_a_sweep_reads_the_data_once_for_each_set_of_auxiliary_tasks(
    registry: Registry, tmp_path: Path
) -> None:
    common = {"data": "tiny", "epochs": 1, "device": "cpu", "results": tmp_path, "data_dir": tmp_path}
    both = read(None, common | {"arch": "hps,mtan", "aux": "denoise,edges"})
    assert [config.aux for config in both] == [("denoise", "edges")] * 2
    found = plan([*both, *read(None, common), *read(None, common | {"aux": "denoise"})], registry)
    first, second, plain, noisy = found.experiments
    assert first.dataset is second.dataset
    assert [len(e.dataset.tasks) for e in (first, plain, noisy)] == [5, 3, 4]
    for job in found.jobs:
        again = Experiment(load(dump(job.config)), registry)
        assert again.look(again.runs(0)[0])[0] == job.run_id, "a worker trains what was planned"


def test_a_run_can_be_inspected(run: Run, tmp_path: Path, tiny_plugin: Path) -> None:
    (found,) = lines(run("--json", "--aux", "colour,denoise", "--no-baseline"))
    page = CliRunner().invoke(
        cli,
        ["inspect", found["run_id"], "--results", str(tmp_path / "results"), "--plugin", str(tiny_plugin),
         "--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "page")],
    )  # fmt: skip
    assert page.exit_code == 0, page.stderr
    assert "has changed" not in page.stderr


def test_without_any_there_is_nothing_in_the_way(experiment: Make) -> None:
    assert type(experiment().dataset).__name__ == "Tiny"
    with pytest.raises(MtlbenchError, match="no auxiliary task"):
        experiment(score_aux=True)
