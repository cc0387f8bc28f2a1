"""What a run is asked to do: one dataclass that the flags, the TOML keys and the record are all made from."""

from __future__ import annotations

import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.spec import Spec, bind, format_spec, split

SELECTION_RULE = "lowest geometric mean of the tasks' validation losses"
"""A mean of logarithms needs no reference and is blind to the losses' units: no task decides alone."""


BASELINE = ("stl", "ew")
"""What Δ-MTL is measured against, by definition: each task alone, in an encoder of its own."""


def option(
    default: Any, help: str, *, low: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> Any:
    """Declare a setting: its default, its help line, and its range (``>= low``, ``> above``, ``< below``)."""
    return field(default=default, metadata={"help": help, "low": low, "above": above, "below": below})


@dataclass(frozen=True)
class Protocol:
    """Everything that must be equal for two runs to be comparable."""

    epochs: int = option(10, "Epochs to train at most.", low=1)
    batch_size: int = option(
        16, "Samples in one step (for each task, where tasks have their own inputs).", low=1
    )
    optimizer: Literal["adam", "adamw", "sgd"] = option("adam", "Optimiser.")
    lr: float = option(1e-3, "Learning rate.", above=0)
    weight_decay: float = option(0.0, "Weight decay; a weighting's own parameters are left out.", low=0)
    momentum: float = option(0.9, "Momentum of sgd.", low=0, below=1)
    scheduler: Literal["none", "step", "cosine"] = option("none", "Learning rate schedule, by epoch.")
    step_size: int = option(100, "Epochs between two drops of the step schedule.", low=1)
    gamma: float = option(0.5, "Factor of each drop of the step schedule.", above=0)
    patience: int = option(0, "Stop after so many epochs without a better validation score; 0: never.", low=0)
    accumulate: int = option(
        1,
        "Cut every batch into so many micro-batches, to need less memory; their gradients are added.",
        low=1,
    )
    precision: Literal["32", "bf16", "16"] = option(
        "32", "Bits that networks compute in; bf16 and 16 by autocast, parameters and gradients stay at 32."
    )
    compile: bool = option(
        False, "Compile architecture and heads with torch.compile; minutes at the start, faster steps."
    )
    clip: float = option(0.0, "Clip the norm of the whole gradient; 0: never.", low=0)
    init: Literal["he", "torch"] = option("he", "Initialisation of encoders and heads.")
    augment: tuple[str, ...] = option(
        (),
        "Augmentations of training samples and their targets: specs of scale, crop, flip and jitter,"
        " separated by commas, such as scale,flip.",
    )


@dataclass(frozen=True)
class Tuning:
    """How settings were searched before the run: what a record must own up to.

    trials: runs that the search trained. over: what it varied, parameters of the weighting (``weights`` is
    one of ``fixed``) and ``lr``. seed: of the search and of its runs. lr: the learning rate that it found;
    None where that of the protocol was kept.
    """

    trials: int
    over: tuple[str, ...]
    seed: int = 0
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.trials < 1 or self.seed < 0:
            raise MtlbenchError(f"'tuning' needs trials >= 1 and seed >= 0, found '{self}'")
        if not self.over or len(set(self.over)) < len(self.over):
            raise MtlbenchError(f"'tuning' is over lr, parameters of the weighting or both, found '{self}'")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise MtlbenchError(f"'tuning': lr must be finite and above 0, found {self.lr}")
        if ("lr" in self.over) != (self.lr is not None):
            raise MtlbenchError(f"'tuning' names lr where it is over lr, and only there, found '{self}'")

    @classmethod
    def parse(cls, text: str) -> Tuning:
        """Read ``tpe[trials=20,over=[weights]]``, as `str` writes it."""
        spec = Spec.parse(text)
        if spec.name != "tpe":
            raise MtlbenchError(f"'tuning' must be such as tpe[trials=20,over=[weights]], found {text!r}")
        return cls(**bind(spec, cls, (), "tuning 'tpe'"))

    def __str__(self) -> str:
        return format_spec("tpe", vars(self))


@dataclass(frozen=True)
class RunConfig(Protocol):
    """All settings of ``mtlbench run``. Names are the flags' names with ``_`` for ``-``."""

    arch: str = option("hps", "Architecture, a spec such as 'mmoe[experts=4]'.")
    weight: str = option("ew", "Weighting, a spec such as 'mgda[normalize=l2]'.")
    data: str = option("pets", "Dataset, a spec such as 'pets[size=64]'.")
    encoder: str | None = option(
        None,
        "Encoder, a spec such as 'unet[depth=3]', or one for each task: 'segmentation=unet,bbox=resnet18'."
        "  [default: the dataset's own]",
    )
    head: tuple[str, ...] = option(
        (),
        "Head of a task, such as 'segmentation=aspp'; several are separated by commas or given one by one."
        "  [default: what suits output and encoder]",
    )
    tasks: tuple[str, ...] | None = option(
        None, "Train these tasks only, separated by commas; those of --aux too.  [default: all]"
    )
    aux: tuple[str, ...] = option(
        (),
        "Auxiliary tasks, derived from the image: specs separated by commas, such as reconstruction,edges."
        " What they do to the input is done in this order.",
    )
    score_aux: bool = option(
        False, "Let the tasks of --aux count like others: baselines, selection and Δ-MTL include them."
    )
    grad: Literal["parameters", "features"] = option(
        "parameters", "What gradient weightings differentiate by: shared parameters or shared features."
    )
    scale: Literal["published", "sum", "mean"] = option(
        "published", "Bring weights to one footing: as published, adding up to the number of tasks, or to 1."
    )
    seeds: tuple[int, ...] = option(
        (0,), "Seeds, such as 0,1,2 or 0-4; every run is repeated for each.", low=0
    )
    probe: int = option(
        0,
        "Log how the task gradients stand to each other on every so-manieth step; 0: only where the method"
        " computes them anyway. Changes no result.",
        low=0,
    )
    validate_every: int = option(
        0,
        "Log scores on the validation split also on every so-manieth step within an epoch, for finer learning"
        " curves; 0: only after each epoch. Changes no result, takes time.",
        low=0,
    )
    tuning: str | None = option(
        None,
        "How the settings were searched, such as 'tpe[trials=20,over=[weights]]'; 'mtlbench tune' gives it.",
    )
    sync_bn: bool = option(
        False,
        "Batch norm over the samples of all processes that torchrun started; without, each uses its own, and"
        " their number is part of the protocol.",
    )
    memory: float = option(
        2.0,
        "GiB of images and maps up to which a split is held in memory; a larger one is read step by step."
        " Changes no result.",
        low=0,
    )
    workers: int = option(
        1,
        "Threads that read ahead, a step each, where data is not held in memory, augmented, or given targets"
        " by --aux; 0: none. Changes no result.",
        low=0,
    )
    profile: bool = option(
        False, "Measure where the time of a run goes; print it and keep it beside the record."
    )
    device: str = option("auto", "Where to compute: auto, cpu, cuda, cuda:1.")
    baseline: bool = option(True, "Train missing single-task baselines first and compare with them.")
    force: bool = option(False, "Train again although the record is there; the old record stays.")
    resume: bool = option(False, "Go on from the checkpoint that an interrupted run left.")
    save_model: bool | None = option(
        None,
        "Keep the selected model beside the record, to inspect it.  [default: keep what is trained; given"
        " outright, a run whose model is missing is trained again]",
    )
    results: Path = option(Path("results"), "Folder of the records.")
    data_dir: Path | None = option(
        None, "Folder of prepared data.  [default: $MTLBENCH_DATA, else the platform's cache folder]"
    )
    quiet: bool = option(False, "Print nothing but the result.")
    json: bool = option(False, "Print the records as JSON Lines instead of the table.")
    plugin: tuple[Path, ...] = option(
        (), "A Python file with plugins of your own; may be given several times."
    )

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that decide comparability, with the selection rule; without augmentation none of
        it."""
        found = {
            f.name: getattr(self, f.name) for f in fields(Protocol) if f.name != "augment" or self.augment
        }
        return found | {"selection": SELECTION_RULE}

    @classmethod
    def resolve(cls, file: Path | None, flags: Mapping[str, Any]) -> RunConfig:
        """Merge defaults, the TOML ``file`` and ``flags`` (flags win; a flag that is None was not given)."""
        values: dict[str, Any] = dict(read_toml(file)) if file else {}
        values |= {name: value for name, value in flags.items() if value is not None}
        hints = get_type_hints(cls)
        checked = {f.name: _check(f, hints[f.name], values[f.name]) for f in fields(cls) if f.name in values}
        return cls(**checked)


def read_toml(file: Path) -> dict[str, Any]:
    """Read a config file: its keys are the flags' names. An unknown key is an error."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MtlbenchError(f"config file '{file}' does not exist") from None
    except OSError as error:
        raise MtlbenchError(f"config file '{file}' can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MtlbenchError(f"config file '{file}' is not valid TOML: {error}") from None
    known = {flag_name(f.name): f.name for f in fields(RunConfig)}
    values = {}
    for key, value in content.items():
        if key not in known:
            raise MtlbenchError(
                f"config file '{file}': unknown key '{key}'.{did_you_mean(key, known)}"
                " The keys are the flags of 'mtlbench run'"
            )
        values[known[key]] = value
    return values


def flag_name(name: str) -> str:
    """Return a setting's name as the command line and TOML spell it."""
    return name.replace("_", "-")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``0,1,5-7`` as (0, 1, 5, 6, 7). Raises ValueError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = range(int(first), int(last) + 1) if dash else (int(first),)
        if not numbers:
            raise ValueError(part)
        seeds.extend(numbers)
    return tuple(seeds)


def _check(setting: Field[Any], hint: Any, value: Any) -> Any:
    """Return ``value`` in the setting's type, or raise the error that names setting, rule and finding."""
    name = flag_name(setting.name)
    try:
        value = _convert(hint, value)
    except (TypeError, ValueError):
        raise MtlbenchError(f"'{name}' must be {_describe(hint)}, found {value!r}") from None
    low, above, below = (setting.metadata[key] for key in ("low", "above", "below"))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (int, float)) and not (
            math.isfinite(number) and low <= number < below and number > above
        ):
            rule = f"finite and above {above:g}" if above > low else f"at least {low:g}"
            rule += f" and below {below:g}" if math.isfinite(below) else ""
            raise MtlbenchError(f"'{name}' must be {rule}, found {number}")
    if isinstance(value, tuple) and len(set(value)) < len(value):
        raise MtlbenchError(f"'{name}' names something twice: {', '.join(map(str, value))}")
    return value


def _convert(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value)
    if origin is Literal:
        if str(value) not in arguments:  # TOML has 16 for "16"
            raise ValueError(value)
        return str(value)
    if origin is tuple:
        if isinstance(value, str):
            if arguments[0] is int:
                return parse_seeds(value)
            value = split(value) if arguments[0] is str else value.split(",")
        items = tuple(
            _convert(arguments[0], item) for item in (value if isinstance(value, (list, tuple)) else [value])
        )
        if not items and arguments[0] is not Path:
            raise ValueError(value)
        return items
    if value == "":
        raise ValueError(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(value)
    return value


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _describe(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return "numbers such as 0,1,2 or 0-4" if arguments[0] is int else "a list of names"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return names[hint]
