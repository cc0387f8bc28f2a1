"""A compiled run: the same numbers within rounding, and a function of its config all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import facts, layout, outcome, outcome_in_pieces

from mtlbench.errors import MtlbenchError
from mtlbench.training import compiled
from mtlbench.training.model import build, build_engine

# The tracer of torch looks at attributes that warn when looked at.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make graphs of forward and backward, as always, and run them without a C++ compiler's minutes."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield
    torch.compiler.reset()


PAIRS = [
    {"arch": "hps", "weight": "ew"},
    {"arch": "mmoe", "weight": "mgda"},
    {"arch": "hps", "weight": "mgda", "grad": "features"},
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "-".join(p.values()))
def test_a_compiled_step_is_the_step(pair: dict[str, Any], experiment: Callable[..., Any]) -> None:
    """Also where the graph is gone through backwards once for each task."""
    found = []
    for wanted in (False, True):
        setting = experiment(**pair, encoder="conv[width=4,depth=2]")
        setting.run.protocol["compile"] = wanted
        model, weighting = build(setting.run, setting.dataset)
        batch = setting.dataset.split("train").fetch(torch.arange(8)).to(torch.device("cpu"))
        step = build_engine(setting.run, setting.dataset, model, weighting).step(batch)
        found.append((step, dict(model.named_parameters())))
    (plain, expected), (step, parameters) = found
    assert parameters.keys() == expected.keys()
    torch.testing.assert_close(step.losses, plain.losses, rtol=1e-5, atol=1e-6)
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert layout(parameter.grad) == layout(parameter), name
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_compiled_run_resumes_to_the_same_record(experiment: Callable[..., Any], tmp_path: Path) -> None:
    """24 samples in batches of 10: the graph of the last batch, of 4, comes before or after others."""
    setting = experiment(encoder="conv[width=4,depth=2]", batch_size=10, epochs=2, compile=True)
    whole = facts(outcome(setting))
    assert whole["status"] == "ok"
    torch.compiler.reset()
    assert facts(outcome_in_pieces(setting, tmp_path / "c.pt")) == whole
    plain = experiment(encoder="conv[width=4,depth=2]", batch_size=10, epochs=2)
    assert setting._identity(setting.run)["protocol"] != plain._identity(plain.run)["protocol"]


def test_too_many_graphs_are_refused(experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "SUBSETS", 2)
    with pytest.raises(MtlbenchError, match=r"every subset of 3 tasks.*leave --compile out"):
        experiment(data="tiny[missing=0.5]", compile=True)


def test_without_a_compiler_compile_is_refused(
    experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(MtlbenchError, match="needs a C\\+\\+ compiler, and there is none; install g\\+\\+"):
        experiment(compile=True)


def test_what_torch_cannot_compile_is_one_line() -> None:
    failure = torch._dynamo.exc.InternalTorchDynamoError("no such thing\n\npages of it")
    with pytest.raises(MtlbenchError) as caught, compiled.compiling(lambda: False):
        raise failure
    assert str(caught.value) == "--compile: torch.compile failed: no such thing; leave --compile out"
    with pytest.raises(KeyboardInterrupt), compiled.compiling(lambda: True):  # Ctrl-C ends compilers, too
        raise failure
    with pytest.raises(ValueError, match="mine"), compiled.compiling(lambda: True):
        raise ValueError("mine")
