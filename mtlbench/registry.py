"""Finds plugins, loads them lazily and explains failures.

A plugin is an entry point of a group ``mtlbench.<kind>`` or a class in a file given by ``--plugin``. Entry
points are read as metadata only: listing imports nothing, and a plugin that is broken breaks only itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, reduce
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import CodeType
from typing import Any

from mtlbench import source
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.source import source_digest
from mtlbench.spec import Spec, bind, changed, format_spec, parameters

__all__ = ["KINDS", "BrokenFile", "Choice", "Kind", "Plugin", "Registry", "find_kind", "source_digest"]


@dataclass(frozen=True)
class Kind:
    """A kind of plugin: its words, and the class of `mtlbench.contracts` that a plugin subclasses."""

    plural: str
    singular: str
    contract: str

    @property
    def group(self) -> str:
        """The entry-point group."""
        return f"mtlbench.{self.plural}"


KINDS: Mapping[str, Kind] = {
    kind.plural: kind
    for kind in (
        Kind("architectures", "architecture", "Architecture"),
        Kind("encoders", "encoder", "Encoder"),
        Kind("weightings", "weighting", "Weighting"),
        Kind("datasets", "dataset", "Dataset"),
        Kind("auxiliary", "auxiliary task", "Auxiliary"),
    )
}


def find_kind(word: str) -> Kind:
    """Return the kind that is called ``word``, in the singular or the plural."""
    words = {
        "auxiliaries": KINDS["auxiliary"],
        **{kind.singular: kind for kind in KINDS.values()},
        **KINDS,
    }
    try:
        return words[word.lower()]
    except KeyError:
        raise MtlbenchError(
            f"unknown kind {word!r}.{did_you_mean(word.lower(), words)} Kinds: {', '.join(KINDS)}"
        ) from None


@dataclass(frozen=True)
class Plugin:
    """Where a plugin is to be found. Nothing is imported until `load`.

    kind: a key of `KINDS`. name: what specs call it. origin: the distribution and its version, or the
    path of the file as it was given. module, attribute: what to import.
    """

    kind: str
    name: str
    origin: str
    module: str
    attribute: str

    @property
    def title(self) -> str:
        """What messages call it: ``weighting 'mgda'``."""
        return f"{KINDS[self.kind].singular} {self.name!r}"

    def load(self) -> type[Any]:
        """Import the class. Whatever goes wrong is a `MtlbenchError` that names the plugin and its origin."""
        try:
            return self._load()
        except (Exception, SystemExit) as exc:
            raise MtlbenchError(f"{self.title} from {self.origin} failed to load: {_explain(exc)}") from exc

    def summary(self) -> str:
        """Return the first line of the docstring, read from the source without importing it."""
        return source.summary(self.module, self.attribute)

    def reason(self, *, load: bool = False) -> str | None:
        """Return why the plugin cannot load; None where nothing is seen.

        Nothing is imported, so that only what is plain in the source is seen. load: import it and be sure.
        """
        if self.module and self.attribute and not load:
            return source.fault(self.module, self.attribute)
        try:
            self._load()
        except (Exception, SystemExit) as exc:
            return _explain(exc)
        return None

    def _load(self) -> type[Any]:
        if not self.module or not self.attribute:
            raise ValueError("the entry point is not of the form module:class")
        contract = getattr(importlib.import_module("mtlbench.contracts"), KINDS[self.kind].contract)
        found = reduce(getattr, self.attribute.split("."), importlib.import_module(self.module))
        if not (isinstance(found, type) and issubclass(found, contract)):
            raise TypeError(f"{self.module}:{self.attribute} is no subclass of {contract.__name__}")
        if contract.__name__ == "Weighting" and not hasattr(found, "needs"):
            raise TypeError(
                f"{self.module}:{self.attribute} does not say what it needs (needs = Need.LOSSES ...)"
            )
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise TypeError(f"{self.module}:{self.attribute} does not define {missing}")
        return found


@dataclass(frozen=True)
class BrokenFile:
    """A file given by ``--plugin`` that gave no plugin, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """A plugin and the value of every one of its parameters.

    parameters: in the order of the constructor, defaults included. ``str(choice)`` is the canonical spec:
    the name and the parameters that differ from their defaults.
    """

    plugin: Plugin
    cls: type[Any]
    parameters: Mapping[str, Any]

    def __str__(self) -> str:
        known = parameters(self.cls, self.cls.context, self.plugin.title)
        return format_spec(self.plugin.name, changed(self.parameters, known))

    def build(self, **context: Any) -> Any:
        """Return an instance, given those values of ``context`` that its constructor takes.

        A `MtlbenchError` of the constructor passes; a TypeError or ValueError, which is how a constructor
        refuses a parameter, becomes one that names the plugin.
        """
        signature = inspect.signature(self.cls.__init__)
        takes = set(signature.parameters)
        if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            takes.update(self.cls.context)  # they go on to the constructor of the contract
        given = {key: value for key, value in context.items() if key in takes}
        try:
            built = self.cls(**given, **self.parameters)
        except (TypeError, ValueError) as exc:
            what = KINDS[self.plugin.kind].singular
            raise MtlbenchError(f"{what} {str(self)!r}: {' '.join(str(exc).split())}") from exc
        if "called" in vars(built):
            built.called = self.plugin.name
        return built


class Registry:
    """All plugins: those of installed distributions, and those of ``files``.

    A file is imported when the registry is made, as a module of its own. Every concrete public class that
    it defines and that subclasses a contract is a plugin; its name is the class's ``name`` where that is
    a text, else the class's name in kebab case. A file that is missing is an error; one that does not
    import is listed in `broken_files` and stops nobody else.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self._from_files: list[Plugin] = []
        self._broken: list[BrokenFile] = []
        for file in {file.resolve(): file for file in files}.values():
            if not file.is_file():
                raise MtlbenchError(f"--plugin {file}: there is no such file")
            try:
                found = list(_plugins_of(file))
            except (Exception, SystemExit) as exc:
                self._broken.append(BrokenFile(str(file), _explain(exc, file)))
                continue
            if not found:
                contracts = ", ".join(kind.contract for kind in KINDS.values())
                self._broken.append(BrokenFile(str(file), f"defines no concrete subclass of {contracts}"))
            self._from_files += found

    @property
    def broken_files(self) -> tuple[BrokenFile, ...]:
        """Files that should have given plugins and gave none."""
        return (*self._broken, *self._installed[1])

    def plugins(self, kind: str, pattern: str = "*") -> list[Plugin]:
        """Return the plugins of a kind whose name matches the shell ``pattern``, in natural order.

        Two plugins of the same name are both there.
        """
        plural = find_kind(kind).plural
        found = [
            plugin
            for plugin in (*self._installed[0], *self._from_files)
            if plugin.kind == plural and fnmatchcase(plugin.name, pattern)
        ]
        return sorted(found, key=lambda plugin: (_natural(plugin.name), plugin.origin, plugin.module))

    def get(self, kind: str, name: str) -> Plugin:
        """Return the plugin with this name; `MtlbenchError` where there is none or more than one."""
        what = find_kind(kind)
        every = self.plugins(kind)
        found = [plugin for plugin in every if plugin.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            origins = " and ".join(
                f"{plugin.origin} ({plugin.module}:{plugin.attribute})" for plugin in found
            )
            raise MtlbenchError(
                f"{what.singular} {name!r} is given by {origins}: rename or uninstall all but one"
            )
        broken = [
            *(
                f"{plugin.name!r} from {plugin.origin} ({why})"
                for plugin in every
                if (why := plugin.reason())
            ),
            *(f"{file.path!r} ({file.reason})" for file in self.broken_files),
        ]
        failed = f"; {_count(broken, 'plugin')} failed to load: {', '.join(broken)}" if broken else ""
        near = did_you_mean(name, dict.fromkeys(plugin.name for plugin in every))
        raise MtlbenchError(
            f"unknown {what.singular} {name!r}.{near} "
            f"{len(every)} available: mtlbench ls {what.plural}{failed}"
        )

    def choose(self, kind: str, text: str) -> Choice:
        """Return what the spec ``text`` chooses: the class, loaded, and all its parameters, typed."""
        spec = Spec.parse(text)
        plugin = self.get(kind, spec.name)
        cls = plugin.load()
        values = bind(spec, cls, cls.context, plugin.title)
        for key, value in values.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise MtlbenchError(
                    f"{plugin.title}: parameter {key!r} is {value!r}, which a record cannot hold;"
                    " parameters are finite numbers, texts, true, false, none and lists of them"
                ) from None
        return Choice(plugin, cls, values)

    @cached_property
    def _installed(self) -> tuple[list[Plugin], list[BrokenFile]]:
        """The plugins of all distributions on the path, and the entry-point files that cannot be read."""
        found: dict[str, list[Plugin]] = {}
        broken = []
        for distribution in distributions():
            try:
                if "[mtlbench." not in (distribution.read_text("entry_points.txt") or ""):
                    continue
                name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
                if name not in found:  # the first on the path is the one that is imported
                    found[name] = list(_plugins_in(distribution))
            except Exception as exc:  # metadata that nobody checked, written by anybody
                path = distribution.locate_file("")
                broken.append(BrokenFile(f"entry points of a distribution in {path}", _explain(exc)))
        return [plugin for plugins in found.values() for plugin in plugins], broken


class _FileLoader(SourceFileLoader):
    """Imports a file as it is now: no byte code is read, and none is left beside a user's file."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _plugins_in(distribution: Distribution) -> Iterator[Plugin]:
    """Yield the plugins that a distribution registers, from its metadata."""
    origin = f"{distribution.metadata['Name']} {distribution.version}"
    for kind in KINDS.values():
        for entry in distribution.entry_points.select(group=kind.group):
            module, _, attribute = re.sub(r"\s*\[.*\]\s*$", "", entry.value).partition(":")
            yield Plugin(kind.plural, entry.name, origin, module.strip(), attribute.strip())


def _plugins_of(file: Path) -> Iterator[Plugin]:
    """Import a file and yield its plugins."""
    content = file.read_bytes()
    stem = re.sub(r"\W", "_", file.stem)
    name = f"mtlbench_plugin_{stem}_{sha256(content).hexdigest()[:8]}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, file, loader=_FileLoader(name, str(file)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and typing look their module up while it is being made
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    elif module.__spec__ is not None:
        module.__file__ = module.__spec__.origin = str(file)  # the same text; where it was read may be gone
    contracts = importlib.import_module("mtlbench.contracts")
    classes: dict[type[Any], str] = {}
    for attribute, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == name and not attribute.startswith("_"):
            classes.setdefault(value, attribute)  # a second name for a class is no second plugin
    for cls, attribute in classes.items():
        if inspect.isabstract(cls):
            continue
        for kind in KINDS.values():
            if issubclass(cls, getattr(contracts, kind.contract)):
                own = vars(cls).get("name")
                called = own if isinstance(own, str) else _kebab(attribute)
                yield Plugin(kind.plural, called, str(file), name, attribute)


def _explain(exc: BaseException, file: Path | None = None) -> str:
    """Return an exception in one line, with the line of ``file`` that it passed through last."""
    line: int | None = None
    if file is not None and isinstance(exc, SyntaxError):
        line = exc.lineno
    elif file is not None:
        lines = [
            frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == str(file)
        ]
        line = lines[-1] if lines else None
    text = " ".join((exc.msg if isinstance(exc, SyntaxError) else str(exc)).split())
    where = f" ({file}:{line})" if line else ""
    return f"{type(exc).__name__}{': ' if text else ''}{text}{where}"


def _kebab(name: str) -> str:
    """MyRandomWalk -> my-random-walk, PCGrad -> pc-grad."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", "-", name)
    return words.strip("-").lower()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts resnet18 before resnet101."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _count(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
