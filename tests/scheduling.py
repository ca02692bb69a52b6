"""How ``make test`` divides the tests among its processes: by file, and files that share something costly stay together."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
SHARED = ("server", "encoder_server", "decoder_exports")
"""Fixtures of a session that take long to make: the files that ask for one run in the same process, one after the other."""


class GroupScheduling(LoadScopeScheduling):
    """Whichever process is free takes the next group, in the order of collection: the longest, those of servers, come first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0])


@functools.cache
def group_of(file: str, root: Path = ROOT) -> str:
    """The group of a test file, its path from ``root``: the first of :data:`SHARED` that a test or fixture of it asks for, else
    the file alone. Raises ValueError when it asks for several: their groups would have to become one."""
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    asking = [node for node in functions if node.name.startswith("test_") or "fixture" in map(_name, node.decorator_list)]
    asked = {argument.arg for function in asking for argument in function.args.args} - {node.name for node in functions}
    found = [fixture for fixture in SHARED if fixture in asked]
    if len(found) > 1:
        raise ValueError(f"{file} asks for {' and '.join(found)}; make files of it that ask for one each")
    return found[0] if found else file


def _name(decorator: ast.expr) -> str:
    """Of ``@pytest.fixture(...)``: fixture."""
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return target.attr if isinstance(target, ast.Attribute) else ""
