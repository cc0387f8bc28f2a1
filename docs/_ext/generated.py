"""What the code knows is not written a second time: pages ask for it with a comment on a line of its own.

- ``<!-- options run -->``, ``<!-- options protocol -->``: the settings of ``mtlbench run``, from `RunConfig`;
- ``<!-- methods KIND -->``: the method cards of a kind of plugin, from the registry and the docstrings;
- ``<!-- heads all -->``, ``<!-- augmentations all -->``: the cards of what is no plugin, from the docstrings;
- ``<!-- printed FILE -->``: really printed output, a file of ``_printed/``.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args, get_origin, get_type_hints

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]

_MARK = re.compile(r"^<!-- (options|methods|heads|augmentations|printed) ?(.*?) -->$", re.MULTILINE)
_SPECIAL = re.compile(r"([\\*_\[\]<>|$#~^])")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def options(part: str) -> str:
    """Return a table of the settings of a run: those of the protocol, or (``run``) the others."""
    from mtlbench.config import Protocol, RunConfig, flag_name

    hints = get_type_hints(RunConfig)
    protocol = {setting.name for setting in fields(Protocol)}
    rows = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for setting in fields(RunConfig):
        if (setting.name in protocol) != (part == "protocol"):
            continue
        default = "" if setting.default is MISSING else _default(setting.default)
        text = escape(setting.metadata["help"].partition("  [default:")[0])
        rows.append(f"| `{flag_name(setting.name)}` | {_allowed(hints[setting.name])} | {default} | {text} |")
    return "\n".join(rows)


def _default(value: object) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _allowed(hint: Any) -> str:
    """Return what a setting accepts, in a word."""
    origin, arguments = get_origin(hint), get_args(hint)
    if arguments and type(None) in arguments:
        return _allowed(arguments[0])
    if origin is tuple:
        return f"{_allowed(arguments[0])} …"
    if arguments:
        return ", ".join(f"`{choice}`" for choice in arguments)
    return {int: "integer", float: "number", bool: "true, false", str: "text", Path: "path"}[hint]


def methods(plural: str) -> str:
    """Return a table of the plugins of a kind, and their cards."""
    from mtlbench.registry import KINDS, Registry

    shipped = [p for p in Registry().plugins(plural) if p.module.startswith("mtlbench_zoo.")]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    missing = set(declared.get(KINDS[plural].group, ())) - {plugin.name for plugin in shipped}
    if missing:
        raise RuntimeError(
            f"not installed: {', '.join(sorted(missing))}; `make docs` installs before it builds"
        )
    if not shipped:
        return "None ships in the box yet."
    rows = ["| name | in short |", "| --- | --- |"]
    cards = []
    for plugin in shipped:
        rows.append(f"| [`{plugin.name}`](#{plural}-{plugin.name}) | {escape(plugin.summary())} |")
        cards.append(f"({plural}-{plugin.name})=\n### `{plugin.name}`\n\n{_method(plugin)}")
    return "\n".join(rows) + "\n\n" + "\n\n".join(cards)


def heads(_: str) -> str:
    """Return the cards of all heads, each with what it gives."""
    from mtlbench.contracts import Map
    from mtlbench.heads import HEADS
    from mtlbench.spec import parameters

    return "\n\n".join(
        f"### `{name}`\n\n"
        + _card(cls, parameters(cls, cls.context), [("Gives", "a map" if cls.gives is Map else "a vector")])
        for name, cls in HEADS.items()
    )


def augmentations(_: str) -> str:
    """Return the cards of all augmentations."""
    from mtlbench.data.augment import AUGMENTATIONS
    from mtlbench.spec import parameters

    cards = (f"### `{name}`\n\n{_card(cls, parameters(cls, ()), [])}" for name, cls in AUGMENTATIONS.items())
    return "\n\n".join(cards)


def _method(plugin: Any) -> str:
    from mtlbench.spec import parameters

    cls = plugin.load()
    return _card(cls, parameters(cls, cls.context), list(_facts(plugin.kind, cls)))


def _card(cls: Any, found: Any, facts: list[tuple[str, str]]) -> str:
    """Return docstring, facts and parameters of a class."""
    from mtlbench.spec import describe, format_value

    parts = [card(inspect.getdoc(cls) or "", [parameter.name for parameter in found])]
    if facts:
        parts.append("\n".join(f"- {label}: {text}" for label, text in facts))
    if found:
        rows = ["| parameter | value | default |", "| --- | --- | --- |"]
        for parameter in found:
            default = "required" if parameter.required else f"`{format_value(parameter.default)}`"
            rows.append(f"| `{parameter.name}` | {escape(describe(parameter.annotation))} | {default} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _facts(kind: str, cls: Any) -> Iterator[tuple[str, str]]:
    """Yield what a plugin's class states for the program, as (label, Markdown)."""
    if kind == "architectures":
        yield "Cost", escape(cls.cost)
        yield (
            "`--grad features`",
            "possible" if cls.shares_features else "refused: no feature feeds all tasks",
        )
    if kind == "weightings":
        looks = {
            "losses": "the losses",
            "gram": "the Gram matrix of the task gradients",
            "cross": "the products of task gradients of two batches; draws three batches a step",
            "bilevel": "what a step on one batch does to another; draws two batches a step",
            "jacobian": "the task gradients",
        }
        yield "Looks at", looks[cls.needs.value]
        yield "Heads", "weights of their own" if cls.heads == "own" else f"{cls.heads} gradients"
        if cls.properties:
            yield "Checked", ", ".join(sorted(cls.properties))
    if kind == "datasets":
        yield "Encoder", f"`{cls.encoder}` unless another is asked for"
        facts = {"Licence": cls.licence, "Cite": cls.citation, "Get it": cls.download}
        yield from ((label, escape(text)) for label, text in facts.items() if text)
        if cls.homepage:
            yield "Home", f"<{cls.homepage}>"


def printed(name: str) -> str:
    """Return a file of printed output as a block."""
    file = ROOT / "docs" / "_printed" / name
    return f"```text\n{file.read_text(encoding='utf-8').rstrip()}\n```"


def escape(text: str) -> str:
    """Return plain text as Markdown; what stands in backticks stays code."""
    parts = re.split(r"(``.+?``|`.+?`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"`{part.strip('`')}`"
        else:
            parts[i] = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", _SPECIAL.sub(r"\\\1", part))
    return "".join(parts)


def prose(text: str) -> str:
    """Return a paragraph as Markdown: formulas are what two blanks set apart."""
    parts = re.split(r" {2,}", " ".join(text.splitlines()))
    for i in range(1, len(parts), 2):
        formula, end = re.fullmatch(r"(.*?)([,.;:]?)", parts[i]).groups()  # type: ignore[union-attr]
        parts[i] = f"`{formula}`{end}"
    return " ".join(part if i % 2 else escape(part) for i, part in enumerate(parts))


def card(docstring: str, parameters: Collection[str]) -> str:
    """Return a docstring as Markdown.

    It may hold paragraphs, lists, indented formulas, and lines (or sentences) that begin with ``Source:``,
    ``Heads:``, ``Deviations:`` or the name of a parameter.
    """
    label = re.compile(rf"(?:{'|'.join(['Source', 'Heads', 'Deviations', *map(re.escape, parameters)])}): +")
    blocks = []
    for block in re.split(r"\n\s*\n", docstring):
        lines = block.splitlines()
        if all(line.startswith("  ") for line in lines):
            text = "\n".join(line.replace("``", "") for line in lines)
            blocks.append(f"```text\n{dedent(text)}\n```")
        elif lines[0].startswith("- "):
            blocks.append("\n".join(escape(re.sub(r"(?<=\S) {2,}", " ", line)) for line in lines))
        else:
            for part in re.split(rf"(?:\n|(?<=\.) )(?={label.pattern})", block):
                found = label.match(part)
                name = found[0].rstrip(": ") if found else ""
                head = f"**{name}.** " if name[:1].isupper() else f"`{name}`: " if name else ""
                blocks.append(head + prose(part[found.end() :] if found else part))
    return "\n\n".join(blocks)


def _replace(app: Sphinx, docname: str, source: list[str]) -> None:
    makers = {
        "options": options,
        "methods": methods,
        "heads": heads,
        "augmentations": augmentations,
        "printed": printed,
    }
    source[0] = _MARK.sub(lambda mark: makers[mark[1]](mark[2]), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Fill in the marks when a page is read."""
    app.connect("source-read", _replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
