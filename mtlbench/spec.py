"""Specs: ``name[key=value,key=[1,2]]`` <-> a name and typed parameters.

A spec is how a person chooses a plugin and how a record names what was chosen. Its grammar::

    spec  = name [ ":" word ] [ "[" [ key "=" value { "," key "=" value } ] "]" ]
    value = word | quoted | list | spec         (no comma outside quotes and brackets)
    list  = "[" [ value { "," value } ] "]"
    quoted: 'a,b' or "a,b"; the quote itself is written twice inside: 'it''s'

``hf:swin`` is short for ``hf[name=swin]``: the word after a colon is the parameter called ``name``.

What a value means is decided by the annotation of the constructor's parameter, never guessed from its
looks: ``3`` is an int, a float or a str. Nothing is ever evaluated.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mtlbench.errors import MtlbenchError, did_you_mean

_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)
_WORD = re.compile(r":([^\[\]=,'\"\s]+)")
_TASK = re.compile(r"([^=\[\]'\"]+)=")
_KEY = re.compile(r"[^\W\d]\w*")
_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf|nan", re.IGNORECASE)
_BARE = re.compile(r"[^\W\d][\w.+/:-]*", re.ASCII)
_RESERVED = frozenset({"none", "true", "false", "inf", "nan"})
_QUOTES = "'\""


@dataclass(frozen=True)
class Spec:
    """A name and its arguments as text, before their types are known.

    arguments: (key, text of the value) in the order they were written; keys are unique.
    """

    name: str
    arguments: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read ``name[key=value,...]`` or a shorter form; what is malformed is an error with its position."""
        where = f"cannot read {text!r}"
        stripped = text.strip()
        offset = len(text) - len(text.lstrip())
        found = _NAME.match(stripped)
        if found is None:
            raise MtlbenchError(
                f"{where}: expected a name at position {offset + 1}, as in name or name[key=value]"
            )
        name, rest = found.group(), stripped[found.end() :]
        offset += found.end()
        arguments: dict[str, str] = {}
        if word := _WORD.match(rest):
            arguments["name"] = word[1]
            rest, offset = rest[word.end() :], offset + word.end()
        if not rest:
            return cls(name, tuple(arguments.items()))
        if rest[0] != "[":
            raise MtlbenchError(f"{where}: unexpected {rest[0]!r} at position {offset + 1}, expected '['")
        parts = list(_split(rest, offset, where))
        for position, part in parts:
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not _KEY.fullmatch(key):
                raise MtlbenchError(
                    f"{where}: expected key=value at position {position + 1}, found {part.strip()!r}"
                )
            if not value:
                raise MtlbenchError(f"{where}: parameter {key!r} has no value; an empty text is {key}=''")
            if key in arguments:
                raise MtlbenchError(f"{where}: parameter {key!r} is given twice")
            arguments[key] = value
        return cls(name, tuple(arguments.items()))

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return f"{self.name}[{','.join(f'{key}={value}' for key, value in self.arguments)}]"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a plugin: what its constructor's signature says.

    annotation: the resolved type, `typing.Any` where none is written. default: as `convert` would give it
    (1 is 1.0 for a float, a list is a tuple for a Sequence); None where `required`.
    """

    name: str
    annotation: Any
    default: Any
    required: bool


def parameters(cls: type, context: Collection[str], what: str = "") -> tuple[Parameter, ...]:
    """Return the parameters of ``cls`` in the order of its constructor.

    ``self``, the names in ``context`` (given by the program, not by the user) and ``*args, **kwargs``
    are left out. what: how errors name the plugin, by default the class. Raises `MtlbenchError` where an
    annotation cannot be resolved.
    """
    what = what or f"class {cls.__name__!r}"
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    found = []
    for name, parameter in list(inspect.signature(init).parameters.items())[1:]:
        if name in context or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = _resolve(parameter, init, what)
        required = parameter.default is parameter.empty
        default = None if required else _normal(parameter.default, annotation)
        found.append(Parameter(name, annotation, default, required))
    return tuple(found)


def bind(spec: Spec, cls: type, context: Collection[str], what: str = "") -> dict[str, Any]:
    """Return the value of every parameter of ``cls``: what ``spec`` gives, defaults for the rest.

    what: how errors name the plugin, such as ``weighting 'mgda'``; by default the class. Raises
    `MtlbenchError` for an unknown or missing parameter and for a value of a wrong type.
    """
    what = what or f"class {cls.__name__!r}"
    known = parameters(cls, context, what)
    names = [parameter.name for parameter in known]
    given = dict(spec.arguments)
    takes = f"Parameters: {', '.join(names)}" if names else "It takes no parameters"
    for key in given:
        if key not in names:
            raise MtlbenchError(f"{what}: unknown parameter {key!r}.{did_you_mean(key, names)} {takes}")
    values: dict[str, Any] = {}
    for parameter in known:
        if parameter.name in given:
            values[parameter.name] = _value(given[parameter.name], parameter, what)
        elif parameter.required:
            kind = describe(parameter.annotation)
            raise MtlbenchError(
                f"{what}: parameter {parameter.name!r} is required and must be {kind}. {takes}"
            )
        else:
            values[parameter.name] = parameter.default
    return values


def changed(values: Mapping[str, Any], known: Sequence[Parameter]) -> dict[str, Any]:
    """Return those of the ``values`` that `bind` gave which differ from their defaults, in the same order."""
    return {
        parameter.name: values[parameter.name]
        for parameter in known
        if parameter.required or not _same(values[parameter.name], parameter.default)
    }


def convert(text: str, annotation: Any) -> Any:
    """Return the value that ``text`` has under ``annotation``; `ValueError` where it has none.

    Supported are int, float, bool, str, None, Literal, list, tuple and Sequence of those, their unions,
    and `typing.Any` (the first of none, bool, int, float, list, str that fits). A Sequence becomes a tuple.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _first(text, sorted(arguments, key=_rank))
    if annotation is Any or annotation is object:
        return _first(text, (None, bool, int, float, list, str))
    if origin is Literal:
        return _literal(text, arguments)
    if annotation is None or annotation is type(None):
        return _keyword(text, {"none": None})
    if annotation is bool:
        return _keyword(text, {"true": True, "false": False})
    if annotation is int and _INT.fullmatch(text):
        return int(text)
    if annotation is float and _FLOAT.fullmatch(text):
        return float(text)
    if annotation is str:
        return _string(text)
    kind = origin or annotation
    if kind is list or kind is Sequence:
        element = arguments[0] if arguments else Any
        values = [convert(item, element) for item in _items(text)]
        return values if kind is list else tuple(values)
    if kind is tuple:
        return _tuple(_items(text), arguments)
    raise ValueError(text)


def describe(annotation: Any) -> str:
    """Return what ``annotation`` allows in words: ``int``, ``one of "a", "b"``, ``list of float or none``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        ordered = sorted(arguments, key=lambda member: member is type(None))
        return " or ".join(describe(member) for member in ordered)
    if origin is Literal:
        choices = [f'"{choice}"' if isinstance(choice, str) else format_value(choice) for choice in arguments]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if annotation is None or annotation is type(None):
        return "none"
    if annotation is bool:
        return "true or false"
    if annotation is Any or annotation is object:
        return "any value"
    kind = origin or annotation
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"list [{', '.join(describe(member) for member in arguments)}]"
    if kind in (list, tuple, Sequence):
        return f"list of {describe(arguments[0])}" if arguments else "list"
    return getattr(annotation, "__name__", str(annotation))


def format_value(value: object) -> str:
    """Return the text of ``value`` that `convert` reads back as the same value under the same annotation.

    Supported are the types that `convert` gives; any other is a `TypeError`. A text is quoted where it
    could be read as something else.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, str):
        return value if _is_bare(value) else _quote(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    raise TypeError(f"a {type(value).__name__} cannot be written in a spec")


def format_spec(name: str, parameters: Mapping[str, object]) -> str:
    """Return the spec with these parameters, in their order; the bare name where there are none."""
    return str(Spec(name, tuple((key, format_value(value)) for key, value in parameters.items())))


def split(text: str) -> list[str]:
    """Return the parts between those commas of ``text`` that stand outside quotes and brackets."""
    return [part.strip() for _, part in _split(f"[{text}]", -1, f"cannot read {text!r}")]


def by_task(text: str) -> dict[str, str] | None:
    """Read ``task=spec,task=spec`` as {task: spec}; None where ``text`` is a single spec.

    Raises `MtlbenchError` where some parts name a task and others do not, or two name the same.
    """
    if "," not in text and not _TASK.match(text):
        return None
    parts = split(text)
    if len(parts) == 1 and not _TASK.match(parts[0]):
        return None
    found: dict[str, str] = {}
    for part in parts:
        task = _TASK.match(part)
        name = task[1].strip() if task else ""
        if task is None or not name or task.end() == len(part):
            raise MtlbenchError(f"cannot read {text!r}: expected task=spec, found {part!r}")
        if name in found:
            raise MtlbenchError(f"cannot read {text!r}: the task {name!r} is named twice")
        found[name] = part[task.end() :].strip()
    return found


def format_by_task(specs: Mapping[str, object]) -> str:
    """Return ``task=spec,task=spec``."""
    return ",".join(f"{task}={spec}" for task, spec in specs.items())


def _split(text: str, offset: int, where: str) -> Iterator[tuple[int, str]]:
    """Yield (position, part) for the parts between the commas of ``text``, a bracketed list.

    offset: where ``text`` starts in what the user wrote, for the positions in errors.
    """
    opened: list[int] = []
    quote, quoted_from, start = "", 0, 1
    parts: list[tuple[int, str]] = []
    for index, character in enumerate(text):
        if quote:
            if character == quote:
                quote = ""
        elif character in _QUOTES:
            quote, quoted_from = character, index
        elif character == "[":
            opened.append(index)
        elif character == "]":
            opened.pop()
            if not opened:
                parts.append((start, text[start:index]))
                if index + 1 < len(text):
                    position = offset + index + 2
                    raise MtlbenchError(f"{where}: unexpected {text[index + 1]!r} at position {position}")
        elif character == "," and len(opened) == 1:
            parts.append((start, text[start:index]))
            start = index + 1
    if quote:
        raise MtlbenchError(f"{where}: the {quote} at position {offset + quoted_from + 1} is never closed")
    if opened:
        raise MtlbenchError(f"{where}: the '[' at position {offset + opened[-1] + 1} is never closed")
    if len(parts) == 1 and not parts[0][1].strip():
        return
    for begin, part in parts:
        if not part.strip():
            raise MtlbenchError(
                f"{where}: nothing before the comma or bracket after position {offset + begin}"
            )
        yield offset + begin + len(part) - len(part.lstrip()), part


def _resolve(parameter: inspect.Parameter, init: Any, what: str) -> Any:
    """Return the annotation as a type. One at a time: those of the context may be for type checkers only."""
    if parameter.annotation is parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(holder, globalns=getattr(init, "__globals__", {}))[parameter.name]
    except Exception as exc:  # whatever the plugin's text does when it is evaluated
        raise MtlbenchError(
            f"{what}: the annotation {parameter.annotation!r} of parameter {parameter.name!r} cannot be "
            f"resolved ({type(exc).__name__}: {exc}); import its names at the top of {init.__module__}"
        ) from exc


def _normal(default: Any, annotation: Any) -> Any:
    """Return a default as a spec would give it, so that giving it and leaving it out are the same."""
    try:
        return convert(format_value(default), annotation)
    except (TypeError, ValueError):  # what no spec can give stays as it is
        return default


def _same(one: Any, other: Any) -> bool:
    """Whether two values of one annotation are the same; 1 and True are not, nan and nan are."""
    return one is other or repr(one) == repr(other)


def _value(text: str, parameter: Parameter, what: str) -> Any:
    try:
        return convert(text, parameter.annotation)
    except ValueError:
        annotation = parameter.annotation
        choices = (
            [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []
        )
        near = did_you_mean(text, choices)
        end = f".{near}" if near else ""
        raise MtlbenchError(
            f"{what}: parameter {parameter.name!r} must be {describe(annotation)}, found {text!r}{end}"
        ) from None


def _first(text: str, annotations: Sequence[Any]) -> Any:
    for annotation in annotations:
        try:
            return convert(text, annotation)
        except ValueError:
            continue
    raise ValueError(text)


def _rank(annotation: Any) -> tuple[Any, ...]:
    """Return the place of a union's member: the narrower first, so that ``1`` is an int before a float."""
    order = (type(None), bool, int, float, list, tuple, Sequence, Literal, Any, str)
    kind = get_origin(annotation) or annotation
    place = order.index(kind) if kind in order else len(order)
    return place, *([] if kind is Literal else map(_rank, get_args(annotation)))


def _literal(text: str, choices: Sequence[Any]) -> Any:
    for choice in sorted(choices, key=lambda choice: _rank(type(choice))):
        try:
            value = convert(text, type(choice))
        except ValueError:
            continue
        if value == choice:
            return choice
    raise ValueError(text)


def _keyword(text: str, words: Mapping[str, Any]) -> Any:
    try:
        return words[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _string(text: str) -> str:
    """Return a quoted text without its quotes and any other as it is; a list is not a text."""
    if text[:1] not in (*_QUOTES, "["):
        return text
    quote, inner = text[0], text[1:-1]
    if quote == "[" or len(text) < 2 or text[-1] != quote or quote in inner.replace(quote * 2, ""):
        raise ValueError(text)
    return inner.replace(quote * 2, quote)


def _items(text: str) -> list[str]:
    if not text.startswith("["):
        raise ValueError(text)
    try:
        return [part.strip() for _, part in _split(text, 0, text)]
    except MtlbenchError:
        raise ValueError(text) from None


def _tuple(items: Sequence[str], annotations: tuple[Any, ...]) -> tuple[Any, ...]:
    if not annotations:
        annotations = (Any, ...)
    if annotations[-1] is Ellipsis:
        return tuple(convert(item, annotations[0]) for item in items)
    if len(items) != len(annotations):
        raise ValueError(items)
    return tuple(convert(item, annotation) for item, annotation in zip(items, annotations, strict=True))


def _is_bare(text: str) -> bool:
    """Whether ``text`` can stand without quotes: a plain word, or a spec in its own right."""
    if text.lower() in _RESERVED:
        return False
    if _BARE.fullmatch(text):
        return True
    try:
        return bool(_BARE.match(text)) and "[" in text and str(Spec.parse(text)) == text
    except MtlbenchError:
        return False


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
