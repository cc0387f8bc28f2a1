"""The record of a run: everything that follows from its config, and nothing else.

What a clock or a meter says is not a function of the config; it lives beside the record, in `Cost`. So the
record of a resumed run equals that of an uninterrupted one, bit for bit. docs/records.md explains each field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtlbench.errors import MtlbenchError

SCHEMA = 1
STATUSES = ("ok", "diverged", "failed")
IDENTITY = ("spec", "protocol", "data", "code")
FIELDS = ("schema", "run_id", "attempt", "status", "reason", *IDENTITY, "env", "parameters", "budget",
          "selection", "metrics", "losses", "history", "baselines", "comparability")  # fmt: skip

OBJECTS = (*IDENTITY, "env", "parameters", "metrics", "baselines")


def canonical(value: Any) -> str:
    """Return JSON that is the same for equal values: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def run_id(identity: Mapping[str, Any]) -> str:
    """Return the run's name: a hash of what it is asked to do, on which data, with which code."""
    return _hash({key: identity[key] for key in IDENTITY})


def comparability_key(record: Mapping[str, Any]) -> str:
    """Return the hash of what two runs must have in common to stand in one table.

    Data (fingerprint and split sizes), protocol (with the selection rule), and the metrics' versions and
    units are in it, and which tasks are auxiliary, since those do not select; architecture, weighting,
    encoder, seed and code are what a table compares.
    """
    metrics = {
        task: {name: [found["version"], found["unit"], found["auxiliary"]] for name, found in scores.items()}
        for task, scores in record["data"]["metrics"].items()
    }
    data = {key: record["data"][key] for key in ("fingerprint", "counts")}
    return _hash({"data": data, "protocol": record["protocol"], "metrics": metrics})


@dataclass(frozen=True)
class Record:
    """One run, as it is kept: ``values`` has the fields that docs/records.md lists."""

    values: Mapping[str, Any]

    @property
    def run_id(self) -> str:
        """The run's name, 16 hexadecimal digits."""
        return str(self.values["run_id"])

    @property
    def status(self) -> str:
        """``ok``, ``diverged`` or ``failed``."""
        return str(self.values["status"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, an entry for each epoch."""
        return list(self.values["history"])

    @property
    def folder(self) -> tuple[str, str]:
        """Where the record belongs in a store: (dataset, architecture+weighting)."""
        spec = self.values["spec"]
        return spec["dataset"]["name"], f"{spec['architecture']['name']}+{spec['weighting']['name']}"

    def dumps(self) -> str:
        """Return the file's text: indented JSON with sorted keys, equal for equal records."""
        return json.dumps(self.values, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str, where: str) -> Record:
        """Read a record; ``where`` names its file in errors."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise MtlbenchError(f"'{where}' is not a record: {error}; move it away") from None
        missing = [name for name in FIELDS if not isinstance(values, dict) or name not in values]
        if missing:
            raise MtlbenchError(f"'{where}' is not a record: it lacks {', '.join(missing[:3])}; move it away")
        wrong = [name for name in OBJECTS if not isinstance(values[name], dict)]
        if wrong:
            raise MtlbenchError(f"'{where}' is not a record: {wrong[0]} is no object; move it away")
        if values["schema"] != SCHEMA:
            raise MtlbenchError(
                f"'{where}' has schema {values['schema']}, this version of mtlbench reads schema {SCHEMA}"
            )
        return cls(values)


@dataclass(frozen=True)
class Cost:
    """What a run cost on the machine where it ran: measured, so never part of the record.

    seconds: of training, validation included, over all pieces of an interrupted run. step_ms: median time
    of one training step. peak_mb: highest memory of the process (of the device, on CUDA) during the run, in
    MB (10⁶ bytes). device: in words. finished: ISO 8601 date and time.
    """

    seconds: float
    step_ms: float
    peak_mb: float
    device: str
    finished: str

    def dumps(self) -> str:
        """Return the sidecar file's text."""
        return json.dumps(vars(self), indent=1) + "\n"

    @classmethod
    def loads(cls, text: str) -> Cost | None:
        """Read a sidecar; None where it is damaged, since a lost clock must not cost a result."""
        try:
            found = json.loads(text)
            numbers = {name: float(found[name]) for name in ("seconds", "step_ms", "peak_mb")}
            return cls(**numbers, device=str(found["device"]), finished=str(found["finished"]))
        except (ValueError, TypeError, KeyError):
            return None
