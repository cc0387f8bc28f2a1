from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mtlbench.cli.run import run
from mtlbench.config import RunConfig, flag_name, parse_seeds
from mtlbench.errors import MtlbenchError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'arch = "mmoe"\nlr = 1\nseeds = [3, 4]\nweight-decay = 0.5\nbaseline = false\n')
    found = RunConfig.resolve(file, {"arch": "stl", "epochs": None, "seeds": None})
    assert (found.arch, found.lr, found.seeds, found.weight_decay) == ("stl", 1.0, (3, 4), 0.5)
    assert found.baseline is False
    assert found.epochs == RunConfig().epochs
    assert isinstance(found.lr, float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('arhc = "x"', ["unknown key 'arhc'", "'arch'"]),
        ("batch_size = 3", ["unknown key 'batch_size'", "'batch-size'"]),
        ("epochs = 1.5", ["'epochs'", "whole number", "1.5"]),
        ("epochs = true", ["'epochs'", "whole number"]),
        ("epochs = 0", ["'epochs'", "at least 1", "0"]),
        ("lr = 0", ["'lr'", "above 0"]),
        ("lr = nan", ["'lr'", "above 0", "nan"]),
        ("lr = inf", ["'lr'"]),
        ('optimizer = "rmsprop"', ["'optimizer'", "adam, adamw, sgd", "rmsprop"]),
        ("seeds = []", ["'seeds'"]),
        ("seeds = [1, 1]", ["'seeds'", "twice"]),
        ("seeds = [-1]", ["'seeds'", "at least 0"]),
        ('quiet = "yes"', ["'quiet'", "true or false"]),
        ("arch = ", ["not valid TOML"]),
    ],
)
def test_a_wrong_setting_is_named_with_the_rule(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(MtlbenchError) as error:
        RunConfig.resolve(write(tmp_path, text), {})
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match="does not exist"):
        RunConfig.resolve(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", (0,)), ("0,2", (0, 2)), ("0-3", (0, 1, 2, 3)), ("5, 7-8", (5, 7, 8))]
)
def test_seed_lists(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds
    assert RunConfig.resolve(None, {"seeds": text}).seeds == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1"])
def test_what_is_no_seed_list_is_refused(text: str) -> None:
    with pytest.raises(MtlbenchError, match="'seeds' must be numbers"):
        RunConfig.resolve(None, {"seeds": text})


def test_every_setting_is_a_flag_and_a_key(tmp_path: Path) -> None:
    flags = {option for parameter in run.params for option in parameter.opts}
    for setting in fields(RunConfig):
        assert "--" + flag_name(setting.name) in flags
    assert "--seed" in flags
    text = CliRunner().invoke(run, ["--help"]).output
    assert "default: 10" in text
    examples: dict[str, Any] = {
        "arch": '"mmoe"',
        "seeds": "[0]",
        "tasks": '["a"]',
        "plugin": '["x.py"]',
        "clip": "2",
    }
    for key, value in examples.items():
        RunConfig.resolve(write(tmp_path, f"{key} = {value}"), {})
