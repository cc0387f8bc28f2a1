"""What can be known of a module without importing it: where it is, what it says, why it cannot load.

Listing plugins must not import them (torch alone takes seconds), and a digest of their code must not
depend on what an import does. So everything here reads source files with `ast`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """A module's name and source file. tree: its syntax, or the error that keeps it from having one."""

    name: str
    path: Path
    tree: ast.Module | Exception

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def find_module(name: str) -> Module | None:
    """Return the module with this dotted name; None where there is no source file for it.

    Only the path is searched: parent packages are not imported.
    """
    top, *rest = name.split(".")
    spec = _find_spec(top)
    if spec is None:
        return None
    if not rest:
        return _read(name, Path(spec.origin)) if spec.origin and spec.origin.endswith(".py") else None
    for location in spec.submodule_search_locations or ():
        base = Path(location, *rest)
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                return _read(name, path)
    return None


def find_class(module_name: str, attribute: str) -> tuple[Module, ast.ClassDef] | None:
    """Return a class and the module that defines it, following ``from x import name``."""
    seen = set()
    while (module_name, attribute) not in seen:
        seen.add((module_name, attribute))
        module = find_module(module_name)
        if module is None or isinstance(module.tree, Exception):
            return None
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == attribute:
                return module, node
        module_name, attribute = next(
            (
                (_origin(node, module), alias.name)
                for node in module.tree.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if (alias.asname or alias.name) == attribute
            ),
            (module_name, attribute),
        )
    return None


def summary(module_name: str, attribute: str) -> str:
    """Return the first line of a class's docstring; empty where it has none or it cannot be read."""
    found = find_class(module_name, attribute)
    docstring = ast.get_docstring(found[1]) if found else None
    return docstring.strip().partition("\n")[0].strip() if docstring else ""


def fault(module_name: str, attribute: str) -> str | None:
    """Return why ``attribute`` of this module surely cannot be imported, None where nothing is seen.

    Seen are: a module or a package without a file, a syntax error, an import of something that is not
    installed, a ``raise`` at the top level, an attribute that nothing binds. What stands in ``if`` or
    ``try`` may be meant to fail, and is not followed.
    """
    found = _fault(module_name, set())
    if found:
        return found
    module = find_module(module_name)
    if module is None or isinstance(module.tree, Exception):
        return None
    first = attribute.partition(".")[0]
    names = set(_bound(module.tree.body))
    if first in names or not names.isdisjoint(("*", "__getattr__")):
        return None
    return f"AttributeError: module {module_name!r} has no attribute {first!r}"


def source_digest(module_name: str) -> str:
    """Return a hash of a module and of what it imports from its own top-level package and from mtlbench.

    16 hexadecimal digits. All that is imported in turn counts, and so do the package ``__init__`` files
    that run on import. Paths and the name of the top-level package do not, so that the digest is the same
    on every machine.
    """
    top = module_name.partition(".")[0]
    digest = hashlib.sha256()
    for name, module in sorted(_closure(module_name).items()):
        content = module.path.read_bytes()
        digest.update(f"{name.removeprefix(top)}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _read(name: str, path: Path) -> Module:
    try:
        found = path.stat()
    except OSError as exc:
        return Module(name, path, exc)
    return _parse(name, path, found.st_mtime_ns, found.st_size)


@cache
def _parse(name: str, path: Path, _modified: int, _size: int) -> Module:
    try:
        return Module(name, path, ast.parse(path.read_bytes(), path.name))
    except (SyntaxError, ValueError, OSError) as exc:
        return Module(name, path, exc)


def _find_spec(top: str) -> importlib.machinery.ModuleSpec | None:
    return _search(top, tuple(sys.path))


@cache
def _search(top: str, _path: tuple[str, ...]) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return None


def _parents(name: str) -> list[str]:
    """Return ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``: what importing it runs, in that order."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _origin(node: ast.ImportFrom, module: Module) -> str:
    """Return the absolute name of the module that ``from ... import`` reads."""
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _imported(node: ast.stmt, module: Module) -> list[str]:
    """Return the absolute names of the modules that an import statement surely imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [_origin(node, module)] if isinstance(node, ast.ImportFrom) else []


def _closure(module_name: str) -> dict[str, Module]:
    top = module_name.partition(".")[0]
    found: dict[str, Module] = {}
    waiting = [module_name]
    while waiting:
        for name in _parents(waiting.pop()):
            module = find_module(name)
            if module is None or name in found:
                continue
            found[name] = module
            if isinstance(module.tree, Exception):
                continue
            for node in ast.walk(module.tree):
                if not isinstance(node, ast.Import | ast.ImportFrom):
                    continue
                names = _imported(node, module)
                if isinstance(node, ast.ImportFrom):  # what it names may be a submodule
                    names += [f"{names[0]}.{alias.name}" for alias in node.names]
                waiting += [name for name in names if name.partition(".")[0] in (top, "mtlbench")]
    return found


def _fault(module_name: str, seen: set[str]) -> str | None:
    """Return why importing this module fails, looking into everything of its top-level package on the way."""
    absent = _absent(module_name)
    if absent:
        return f"ModuleNotFoundError: No module named {absent!r}"
    top = module_name.partition(".")[0]
    for name in _parents(module_name):
        module = None if name in seen else find_module(name)
        seen.add(name)
        if module is None:
            continue
        where = module.path.name
        if isinstance(module.tree, SyntaxError):
            return f"SyntaxError: {module.tree.msg} ({where}:{module.tree.lineno})"
        if isinstance(module.tree, Exception):
            return f"{type(module.tree).__name__}: {module.tree}"
        for node in module.tree.body:
            if isinstance(node, ast.Raise):
                return f"{_raised(node)} ({where}:{node.lineno})"
            for imported in _imported(node, module):
                own = imported.partition(".")[0] == top
                absent = _absent(imported if own else imported.partition(".")[0])
                if absent:
                    return f"ModuleNotFoundError: No module named {absent!r} ({where}:{node.lineno})"
                found = _fault(imported, seen) if own else None
                if found:
                    return found
    return None


def _absent(module_name: str) -> str | None:
    """Return the first of a module and its parents that has no file, None where all have one."""
    top, *rest = module_name.split(".")
    spec = _find_spec(top) if top else None
    if spec is None:
        return top
    bases = [Path(location) for location in spec.submodule_search_locations or ()]
    suffixes = importlib.machinery.all_suffixes()
    for end, part in enumerate(rest):
        bases = [base / part for base in bases]
        files = (base.with_name(f"{part}{suffix}") for base in bases for suffix in suffixes)
        if not any(base.is_dir() for base in bases) and not any(file.is_file() for file in files):
            return ".".join([top, *rest[: end + 1]])
    return None


def _raised(node: ast.Raise) -> str:
    """Return what an uncaught ``raise`` would print."""
    call = node.exc
    if isinstance(call, ast.Call) and len(call.args) == 1 and isinstance(call.args[0], ast.Constant):
        return f"{ast.unparse(call.func)}: {' '.join(str(call.args[0].value).split())}"
    return ast.unparse(call) if call else "raise"


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that running these statements may bind; ``*`` for a star import."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    yield (alias.asname or alias.name).partition(".")[0]
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name
