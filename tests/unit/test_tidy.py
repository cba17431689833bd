"""Taste that a machine can check: sizes, banned words, and that every document and module has its place."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("fs", "mds", "chunkserver", "transport")
MODULES = sorted(path for service in SERVICES for path in (ROOT / service).rglob("*.py"))
MODULE_LINES_MAX = 520
FUNCTION_LINES_MAX = 60


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_one_idea(path: Path):
    lines = path.read_text().count("\n")
    assert lines <= MODULE_LINES_MAX, f"{lines} lines: this wants to be two modules"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_function_fits_a_screen(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_opens_with_its_purpose(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_is_swallowed_and_nothing_is_evaluated(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            broad = isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
            silent = all(isinstance(step, ast.Pass) for step in node.body)
            assert not (broad and silent), f"line {node.lineno}: an error is swallowed"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}: {node.func.id}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "marshal", "shelve"} & set(names), f"line {node.lineno}: unsafe decoder"


def test_no_module_is_a_drawer_for_anything():
    drawers = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert not [name(path) for path in MODULES if path.name in drawers]


def test_every_link_between_documents_leads_somewhere():
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for document in documents:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{name(document)} links to {target}"


def test_files_that_documents_name_exist():
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pattern = re.compile(r"`((?:fs|mds|chunkserver|transport|tests|bench|docs)/[\w./]+\.\w+)`")
    for document in documents:
        for path in pattern.findall(document.read_text()):
            assert (ROOT / path).exists(), f"{name(document)} names {path}"
