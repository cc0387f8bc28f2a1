"""What is wrong with data is told in one line before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench.data.verify import verify
from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry


@pytest.fixture
def tiny(registry: Registry, tmp_path: Path) -> Callable[..., Any]:
    return lambda spec="tiny": registry.choose("datasets", spec).build(data_dir=tmp_path)


def test_good_data_is_silent_and_has_its_fingerprint(tiny: Callable[..., Any]) -> None:
    for spec in ("tiny", "tiny[missing=0.3]", "tiny[apart=true]"):
        assert verify(tiny(spec)) == (tiny(spec).fingerprint(), [])


def spoil(name: str, index: Any, value: Any) -> Callable[[Any], None]:
    def edit(dataset: Any) -> None:
        dataset.splits["val"].targets[name][index] = value

    return edit


def replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    def edit(dataset: Any) -> None:
        targets = dataset.splits["val"].targets
        targets[name] = change(targets[name])

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (spoil("box", (5, 2), torch.nan), "tiny: val split, task 'box': sample 5 has no label (NaN or -1)"),
        (spoil("box", (5, 2), torch.inf), "val split, task 'box': sample 5 has an infinite target"),
        (spoil("side", 7, 2), "val split, task 'side': sample 7 has a label outside of 0..1"),
        (spoil("side", 7, -2), "val split, task 'side': sample 7 has a label outside of 0..1"),
        (spoil("side", 7, -1), "val split, task 'side': sample 7 has no label"),
        (spoil("mask", (3, 0, 0), 9), "val split, task 'mask': sample 3 has a label outside of 0..1"),
        (spoil("mask", 3, -1), "val split, task 'mask': sample 3 has no label"),
        (
            replace("mask", lambda t: t[:, :8]),
            "val split, task 'mask': BinaryCrossEntropy: a target of shape",
        ),
        (replace("box", lambda t: t[:, :3]), "val split, task 'box': L1: a target of shape (1, 3) does not"),
        (
            replace("side", lambda t: t.float()),
            "val split, task 'side': CrossEntropy: the target must be int64",
        ),
        (lambda d: d.splits["val"].targets.pop("box"), "val split, task 'box': there is no target"),
        (
            lambda d: setattr(d.splits["val"], "inputs", d.splits["val"].inputs[:0]),
            "the split 'val' is empty",
        ),
        (
            lambda d: setattr(d.splits["val"], "inputs", d.splits["val"].inputs[..., :8]),
            "tiny: val: inputs have the shape (3, 16, 8), not (3, 16, 16)",
        ),
        (
            lambda d: setattr(d.splits["val"], "inputs", d.splits["val"].inputs / torch.zeros(())),
            "tiny: val: sample 0 has inputs that are not finite",
        ),
    ],
)
def test_bad_data_is_one_line(tiny: Callable[..., Any], edit: Callable[[Any], None], message: str) -> None:
    dataset = tiny()
    edit(dataset)
    with pytest.raises(MtlbenchError) as caught:
        verify(dataset)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_samples_are_counted_over_batches_and_tasks(tiny: Callable[..., Any]) -> None:
    dataset = tiny("tiny[apart=true]")
    dataset.splits["test"]["side"].targets["side"][4] = 5
    with pytest.raises(MtlbenchError, match=r"test/side split, task 'side': sample 4 has a label outside"):
        verify(dataset)


def test_a_class_that_no_training_sample_has_is_told(tiny: Callable[..., Any], experiment: Any) -> None:
    dataset = tiny()
    dataset.splits["train"].targets["side"].fill_(1)
    _, lines = verify(dataset)
    assert lines == ["tiny: no training sample of 'side' has class 0"]


def test_an_experiment_looks_before_it_trains(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlbench import experiment as module

    def wrong(dataset: Any) -> Any:
        raise MtlbenchError("tiny: something is wrong")

    monkeypatch.setattr(module, "verify", wrong)
    with pytest.raises(MtlbenchError, match="something is wrong"):
        experiment()
    monkeypatch.setattr(module, "verify", lambda dataset: (dataset.fingerprint(), ["a line", "another"]))
    heard: list[str] = []

    class Watcher:
        notice = staticmethod(heard.append)

    made = experiment()
    monkeypatch.setattr(made, "_seed", lambda *a: None)
    made.execute(Watcher(), lambda: False)
    assert heard == ["a line", "another"]
