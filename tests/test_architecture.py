"""The shape of the house: which package may import which, where each engine lives, what importing costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "rag", "eval", "indexer")
ALLOWED = {
    "indexer": set(),
    "rag": {"indexer"},
    "eval": {"indexer"},
    "api": {"rag", "eval", "indexer"},
}
HOMES = {
    "faiss": ("indexer/store/faiss_", "eval/bench/"),
    "langchain_core": ("rag/generate.py", "rag/langchain.py", "rag/langchain_generator.py"),
    "langchain": ("rag/generate.py", "rag/langchain.py", "rag/langchain_generator.py"),
    "fastapi": ("api/",),
    "starlette": ("api/",),
    "uvicorn": ("api/",),
    "click": ("api/cli/",),
    "sqlalchemy": ("indexer/store/", "eval/bench/"),
    "sqlite3": ("indexer/store/", "eval/bench/"),
    "torch": ("indexer/encoders/", "indexer/store/torch_scan.py", "rag/training/", "eval/bench/"),
    "transformers": ("indexer/encoders/", "rag/training/"),
    "sentence_transformers": ("indexer/encoders/", "rag/training/", "eval/bench/"),
}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_arrows_allow(package: str):
    for path in (ROOT / package).rglob("*.py"):
        others = {name.split(".")[0] for name in imports(path)} & set(PACKAGES) - {package}
        assert others <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {others - ALLOWED[package]}"


@pytest.mark.parametrize("engine", HOMES)
def test_each_engine_has_one_home(engine: str):
    for path in modules():
        where = path.relative_to(ROOT).as_posix()
        if engine in {name.split(".")[0] for name in imports(path)}:
            assert where.startswith(HOMES[engine]), f"{where} imports {engine}; its home is {HOMES[engine]}"


def test_only_settings_reads_the_environment():
    for path in modules():
        if path.relative_to(ROOT).as_posix() == "api/settings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            read = isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
            assert not read, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} reads the environment"


def test_nothing_loads_pickles_or_remote_code():
    forbidden = {"allow_dangerous_deserialization=True", "trust_remote_code=True", "import pickle", "allow_pickle=True"}
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], path.relative_to(ROOT)


def test_the_command_line_and_the_packages_import_without_heavy_engines():
    code = (
        "import sys, api.cli.main, indexer.collection, rag.search, rag.answer\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'faiss', 'langchain_core', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_names_say_what_a_module_owns():
    for path in modules():
        assert path.stem not in {"utils", "util", "helpers", "common", "manager", "misc", "base"}, path


def test_the_walk_through_the_code_names_every_module_and_no_other():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^#{2,3} (\S+?)/: .*\n((?:(?!#).*\n)*)", text, flags=re.MULTILINE))
    for folder in sorted({path.parent for path in modules()}):
        where = folder.relative_to(ROOT).as_posix()
        there = {path.name for path in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
        named = set(re.findall(r"`(\w+\.py)`", sections.get(where, ""))) - {"__main__.py"}
        assert there - named == set(), f"ARCHITECTURE.md does not name these under a heading for {where}/"
        assert named - there == set(), f"ARCHITECTURE.md names these of {where}/, which are not there"
