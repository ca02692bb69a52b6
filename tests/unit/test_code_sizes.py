"""Files stay small enough to read, and functions too; no name says nothing. Checked on the files and their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 300
LONGER: dict[str, str] = {
    "tests/unit/test_engine_thread.py": "one scene for every way a request can end; apart, the scene would be copied",
}
"""Files that may be longer, with the reason."""
CODE = {".py", ".cpp", ".cc", ".h", ".hpp", ".inl", ".cu"}
FOLDERS = ("python_backend", "export", "tests", "benchmarks", "examples", "deploy")
NAMES_THAT_SAY_NOTHING = {"util", "utils", "common", "helper", "helpers", "misc"}


def code_files(root: Path) -> list[str]:
    """Paths of our code below ``root``, relative; the symlink to export is not followed."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in CODE]
    own = [path for path in found if not path.is_relative_to(root / "python_backend" / "fastserve" / "export")]
    return sorted(path.relative_to(root).as_posix() for path in own)


def too_long(root: Path) -> set[str]:
    return {name for name in code_files(root) if len((root / name).read_text(encoding="utf-8").splitlines()) > LONGEST}


def nameless(root: Path) -> list[str]:
    return [
        name for name in code_files(root) if NAMES_THAT_SAY_NOTHING & {part.lower() for part in Path(name).with_suffix("").parts}
    ]


def test_no_file_is_longer_than_300_lines_without_a_reason():
    assert too_long(ROOT) == set(LONGER), "split what is new here; strike what has become short"


def test_no_file_or_folder_has_a_name_that_says_nothing():
    assert nameless(ROOT) == []


def test_the_walk_sees_python_and_cpp():
    assert {Path(name).suffix for name in code_files(ROOT)} >= {".py", ".cpp", ".h"}
    assert "tests/unit/test_code_sizes.py" in code_files(ROOT)


def test_the_checkers_of_size_and_names_see_violations(tmp_path):
    for name, lines in {"export/long.cpp": 301, "export/short.h": 300, "tests/unit/utils.py": 1, "export/Common/a.py": 1}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n" * lines, encoding="utf-8")
    assert too_long(tmp_path) == {"export/long.cpp"}
    assert nameless(tmp_path) == ["export/Common/a.py", "tests/unit/utils.py"]


# --- functions --------------------------------------------------------------------------------------------------------

MOST_LINES, MOST_PARAMETERS = 40, 6
LARGER: dict[str, str] = {
    "export/graph.py PackedDecoder.forward": "a parameter for each input of the graph, by whose names torch exports them",
    "python_backend/fastserve/engine/engine.py Engine.__init__": "where the rooms are joined: a parameter for each part",
}
"""Functions that may be longer or take more, with the reason."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, path: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below ``tree``, those within others too, with the names it is in."""
    for node in ast.iter_child_nodes(tree):
        name = path
        if isinstance(node, (Function, ast.ClassDef)):
            name = f"{path}.{node.name}".strip(".")
        if isinstance(node, Function):
            yield name, node
        yield from functions(node, name)


def num_parameters(function: Function) -> int:
    """Of a function, or of a method but for the object or class it is called on."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names[1:] if names[:1] in (["self"], ["cls"]) else names) + (given.vararg is not None) + (given.kwarg is not None)


def too_large(name: str, source: str) -> list[str]:
    """The functions of a file that are too long or take too much. Tests take what pytest gives them, and make scenes of many
    settings: only their lines count."""
    found = []
    for path, function in functions(ast.parse(source)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MOST_LINES or (num_parameters(function) > MOST_PARAMETERS and not name.startswith("tests/")):
            found.append(f"{name} {path}")
    return found


def test_no_function_is_longer_than_40_lines_or_takes_more_than_6_parameters_without_a_reason():
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in code_files(ROOT) if name.endswith(".py")}
    found = {each for name, source in sources.items() for each in too_large(name, source)}
    assert found == set(LARGER), "cut what is new here along its seams; strike what has become small"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():" + "\n    pass" * 39, []),
        ("def f():" + "\n    pass" * 40, ["f"]),
        ("class A:\n    async def g(self):" + "\n        pass" * 40, ["A.g"]),
        ("def f():\n    def g():" + "\n        pass" * 40, ["f", "f.g"]),
        ("def f(a, b, c, /, d, *, e, g): ...", []),
        ("def f(a, b, c, /, d, *rest, e, g): ...", ["f"]),
        ("class A:\n    def f(self, a, b, c, d, e, g): ...\n    def g(self, a, b, c, d, e, g, **more): ...", ["A.g"]),
    ],
)
def test_the_checker_of_functions_sees_what_is_too_large(source, found):
    assert too_large("export/a.py", source) == [f"export/a.py {name}" for name in found]
    assert too_large("tests/a.py", "def f(a, b, c, d, e, g, h): ...") == []
