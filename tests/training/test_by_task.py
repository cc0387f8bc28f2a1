"""Encoders and heads by task: who gets which, what a record says, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from runs import CPU, facts, outcome

from mtlbench.cli.run import run
from mtlbench.errors import MtlbenchError
from mtlbench.heads import FCNHead, UNetHead, VectorHead
from mtlbench.training.loop import train
from mtlbench.training.model import build
from mtlbench.training.report import Silence

SEVERAL = "mask=unet[depth=3,width=4],side=conv,box=conv[width=4]"


def test_each_task_has_the_encoder_that_is_named_for_it(experiment: Callable[..., Any]) -> None:
    setting = experiment(arch="stl", encoder=SEVERAL)
    model, _ = build(setting.run, setting.dataset)
    found = {task: model.architecture.shape(task).channels for task in setting.run.tasks}
    assert found == {"mask": (4, 8, 16), "side": (16, 32, 64), "box": (4, 8, 16)}
    assert setting.run.encoder is None
    assert setting.run.encoder_label == SEVERAL
    assert outcome(setting).status == "ok"


def test_the_baseline_of_a_task_is_the_run_of_that_task_alone(experiment: Callable[..., Any]) -> None:
    """Same encoder, same head, same name: what one command trains, another finds."""
    heads = ("mask=fcn", "side=vector")
    several = experiment(arch="stl", encoder=SEVERAL, head=heads)
    for task, base in several._baselines(several.run).items():
        spec = several.run.encoders[task]
        alone = experiment(arch="stl", encoder=str(spec), head=heads, tasks=(task,))
        assert base == alone.run
        assert several._identity(base) == alone._identity(alone.run)
        assert base.encoder == spec
        assert facts(train(base, several.dataset, CPU, Silence())) == facts(outcome(alone))


def test_a_record_names_encoders_and_heads(experiment: Callable[..., Any]) -> None:
    setting = experiment(arch="stl", encoder=SEVERAL, head=("mask=unet,box=vector",))
    spec = setting._identity(setting.run)["spec"]
    assert spec["encoder"]["by_task"]["box"] == {"name": "conv", "parameters": {"width": 4, "depth": 3}}
    assert list(spec["encoder"]["by_task"]) == ["mask", "side", "box"]
    assert list(spec["heads"]) == ["mask", "box"]
    assert spec["heads"]["mask"]["name"] == "unet"
    same = experiment(encoder="mask=conv,side=conv,box=conv")
    assert same._identity(same.run) == experiment(encoder="conv")._identity(experiment(encoder="conv").run)
    other = experiment(encoder="conv", head=("mask=unet",))
    assert other._identity(other.run) != same._identity(same.run)


def test_heads_are_chosen_by_task(experiment: Callable[..., Any]) -> None:
    setting = experiment(encoder="unet[depth=3,width=4]", head=("mask=fcn",))
    model, _ = build(setting.run, setting.dataset)
    assert isinstance(model.heads["mask"], FCNHead)
    assert isinstance(model.heads["box"], VectorHead)
    default = experiment(encoder="unet[depth=3,width=4]")
    assert isinstance(build(default.run, default.dataset)[0].heads["mask"], UNetHead)


def test_an_encoder_that_starts_from_its_own_values_keeps_them(experiment: Callable[..., Any]) -> None:
    setting = experiment(encoder="conv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlbench_zoo.encoders.conv.Conv.initialised", True)
        kept = build(setting.run, setting.dataset)[0].architecture
    plain = experiment(encoder="conv", init="torch")
    expected = build(plain.run, plain.dataset)[0].architecture.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in kept.state_dict().items())
    he = build(setting.run, setting.dataset)[0].architecture.state_dict()
    assert not all(torch.equal(value, he[key]) for key, value in kept.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": SEVERAL}, r"architecture 'hps' shares one encoder .* names several \(mask=unet\[.*stl$"),
        ({"encoder": "mask=unet,side=conv"}, "names no encoder for the task 'box'"),
        ({"encoder": "mask=unet,sied=conv,box=conv"}, r"tiny has no task 'sied'\. Did you mean 'side'"),
        ({"encoder": "mask=unet,conv"}, "expected task=spec, found 'conv'"),
        ({"encoder": "mask=unet,mask=conv"}, "the task 'mask' is named twice"),
        ({"encoder": "mask="}, "expected task=spec, found 'mask='"),
        ({"encoder": "mask=uent,side=conv,box=conv"}, r"unknown encoder 'uent'\. Did you mean 'unet'"),
        ({"head": ("unet",)}, "--head: expected task=spec, such as segmentation=unet, found 'unet'"),
        ({"head": ("mask=unet", "mask=fcn")}, "--head names two heads for the task 'mask': unet and fcn"),
        ({"head": ("mask=unte",)}, r"--head mask=unte: unknown head 'unte'\. Did you mean 'unet'"),
        ({"head": ("box=unet",)}, r"--head box=unet: head 'unet' cannot give Vector\(size=4\); use .*vector"),
        ({"head": ("msak=unet",)}, r"tiny has no task 'msak'\. Did you mean 'mask'"),
        ({"head": ("mask=unet[depth=3]",)}, "--head mask=unet.*: head 'unet': unknown parameter 'depth'"),
    ],
)
def test_what_does_not_fit_is_one_line(
    settings: dict[str, Any], message: str, experiment: Callable[..., Any]
) -> None:
    with pytest.raises(MtlbenchError, match=message) as caught:
        experiment(**settings)
    assert "\n" not in str(caught.value)


def test_what_is_named_for_a_task_that_is_left_out_is_told(experiment: Callable[..., Any]) -> None:
    encoder = "mask=conv[width=4],side=conv,box=conv"
    setting = experiment(arch="stl", tasks=("mask", "box"), encoder=encoder, head=("side=vector,box=vector",))
    assert setting._unused == [
        "--encoder side=conv has no effect: --tasks leaves 'side' out",
        "--head side=vector has no effect: --tasks leaves 'side' out",
    ]
    assert list(setting.run.heads) == ["box"]
    with pytest.raises(MtlbenchError, match="--head side=vektor: unknown head"):
        experiment(tasks=("mask",), head=("side=vektor",))


def test_on_the_command_line(tiny_plugin: Path, tmp_path: Path) -> None:
    common = ["--data", "tiny", "--epochs", "1", "--results", str(tmp_path / "r"), "--quiet"]
    encoder = "mask=unet[depth=3,width=4],side=conv,box=conv"
    heads = ["--head", "mask=fcn,side=vector", "--head", "box=vector"]
    flags = [*common, "--plugin", str(tiny_plugin), "--arch", "stl", "--encoder", encoder, *heads]
    found = CliRunner().invoke(run, flags)
    assert found.exit_code == 0, found.output
    assert f"encoders {encoder} · heads mask=fcn,side=vector,box=vector" in found.output
    toml = tmp_path / "run.toml"
    toml.write_text('head = "mask=fcn,side=vector,box=vector"\n')
    fewer = flags[: flags.index("--head")]
    again = CliRunner().invoke(run, [*fewer, "--config", str(toml)])
    assert "(4 of 4 runs were there already)" in again.output
