"""What architectures cost, and that it is what their cards say."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from mtlbench.cli import cli
from mtlbench.inspection.cost import ArchitectureCost, architecture_costs, tasks_of
from mtlbench.registry import Registry

NAMES = ["stl", "cross-stitch", "mmoe", "mtan"]


def costs(encoder: str, names: list[str] = NAMES, tasks: int = 3) -> dict[str, ArchitectureCost]:
    return {row.name: row for row in architecture_costs(Registry(), names, encoder, tasks, rounds=0)}


@pytest.mark.parametrize("encoder", ["unet", "resnet18", "segnet[basic=true]"])
def test_the_expected_costs_hold(encoder: str) -> None:
    """In trunks: hps is one, cross-stitch and mmoe with a trunk a task are about as many as tasks."""
    found = costs(encoder)
    trunk = found["hps"]
    assert (found["stl"].parameters, found["stl"].flops) == (3 * trunk.parameters, 3 * trunk.flops)
    for name in ("cross-stitch", "mmoe"):
        assert 3 <= found[name].parameters / trunk.parameters < 3.1
        assert 3 <= found[name].flops / trunk.flops < 3.1
    if encoder != "resnet18":
        # With decoders as heavy as the encoder, as MTAN was published with. Over a resnet with light heads
        # its masks weigh more, and the table says so.
        assert found["mtan"].flops_with_heads / trunk.flops_with_heads < 1.6


def test_a_trunk_is_counted_by_hand() -> None:
    """Two strided 3x3 convolutions on 64 x 64, and batch norms' parameters."""
    row = costs("conv[width=4,depth=2]", ["hps"], tasks=1)["hps"]
    assert row.flops == 2 * (32 * 32 * 4 * 27 + 16 * 16 * 8 * 36)
    assert row.parameters == 4 * 27 + 8 * 36 + 2 * 4 + 2 * 8


def test_tasks_differ_and_repeat_in_turn() -> None:
    assert [task.name for task in tasks_of(4)] == ["segmentation", "classification", "bbox", "segmentation2"]


def invoke(*flags: str) -> Result:
    return CliRunner().invoke(cli, ["cost", "--encoder", "conv[width=4,depth=2]", "--size", "16", *flags])


def test_the_table_lists_all_architectures_and_times_them() -> None:
    shipped = [plugin.name for plugin in Registry().plugins("architectures")]
    done = invoke("--markdown", "--rounds", "2", "--batch-size", "2")
    assert done.exit_code == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert len(lines[0]) == 9
    assert sorted(line[0].strip("`") for line in lines[2:]) == sorted(shipped)
    assert lines[2][0] == "`hps`"
    assert lines[2][2::2] == ["1.00"] * 4
    assert all(float(line[7]) > 0 for line in lines[2:])


def test_counts_repeat_and_what_cannot_be_built_is_told() -> None:
    first, again = invoke("--rounds", "0"), invoke("--rounds", "0")
    assert first.stdout == again.stdout
    assert "ms/step" not in first.stdout
    one = invoke("--rounds", "0", "--tasks", "1", "mmoe[experts=per-task]", "stl")
    assert one.exit_code == 0
    assert one.stderr.startswith("mmoe[experts=per-task]: ")
    assert "at least 2" in one.stderr
    refused = invoke("--rounds", "0", "--tasks", "1", "mmoe[experts=per-task]")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")
    wrong = invoke("mmeo")
    assert wrong.exit_code == 2
    assert "Did you mean 'mmoe'" in wrong.stderr
