"""Every command that the documentation shows is run, and does what the page says.

In a ``console`` block a line that begins with ``$ `` is a command; the lines up to the next one are its output. A page
is one session: a fresh home folder, one working folder, commands in the order of the page. Output is held as a
pattern: ``...`` alone on a line stands for any lines, inside a line for any characters; a command without output lines
is only held to succeed (``# exit 2`` behind it: to end so). ``make`` targets and installation steps are checked by
name; a command that ends in ``&`` runs until the page ends.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOLD = ("git ", "cd ", "docker ", "pip ")
"""Commands that a page tells a reader and a test does not run: they change the machine or need an engine."""


@dataclass
class Command:
    line: str
    exit_code: int
    output: list[str]


def commands(page: Path) -> list[Command]:
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                code = re.search(r"\s+# exit (\d+)$", line)
                text = line[2 : code.start()] if code else line[2:]
                found.append(Command(text.strip(), int(code.group(1)) if code else 0, []))
            elif found:
                found[-1].output.append(line)
    return found


def pattern(lines: list[str]) -> str:
    parts = []
    for line in lines:
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            words = [re.escape(" ".join(piece.split())) for piece in line.split("...")]
            parts.append(r"\s*" + r".*?".join(words).replace(r"\ ", r"\s+") + r"\s*\n")
    return "".join(parts)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


class Session:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behind: list[subprocess.Popen[bytes]] = []
        bin_folder = str(Path(sys.executable).parent)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CLINRAG_")},
            "CLINRAG_HOME": str(folder / "home"),
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "120",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, command: Command) -> None:
        if command.line.endswith("&"):
            words = shlex.split(command.line[:-1])
            self.behind.append(
                subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL)
            )
            self._until_ready(words)
            return
        done = subprocess.run(
            command.line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        output = done.stdout + done.stderr
        assert done.returncode == command.exit_code, f"$ {command.line}\n{output}"
        if command.output:
            wanted = pattern(command.output)
            said = "".join(f"{line}\n" for line in output.splitlines())
            assert re.search(wanted, said), (
                f"$ {command.line}\n--- shown\n{os.linesep.join(command.output)}\n--- got\n{said}"
            )

    def _until_ready(self, words: list[str]) -> None:
        port = words[words.index("--port") + 1] if "--port" in words else "8000"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
                return
            except OSError:
                assert self.behind[-1].poll() is None, f"{words} ended"
                time.sleep(0.1)
        raise AssertionError(f"{words} is not ready")

    def close(self) -> None:
        for process in self.behind:
            process.terminate()
            process.wait(60)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_do_what_it_says(page: Path, tmp_path: Path):
    session = Session(tmp_path)
    examples = ROOT / "docs" / "examples"
    if examples.is_dir():
        shutil.copytree(examples, tmp_path, dirs_exist_ok=True)
    try:
        for command in commands(page):
            words = command.line.split()
            if words[0] == "make":
                assert words[1] in make_targets(), command.line
            elif not command.line.startswith(TOLD):
                session.run(command)
    finally:
        session.close()


def test_the_readme_starts_with_the_two_commands():
    lines = [command.line for command in commands(ROOT / "README.md")]
    assert {"make demo", "make test"} <= set(lines)


def test_every_command_of_the_command_line_is_documented():
    import click

    from api.cli.main import cli

    said = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help, f"{name} has no help"
        inner = command.commands if isinstance(command, click.Group) else {}
        for full in [f"clinrag {name}", *(f"clinrag {name} {one}" for one in inner)]:
            assert full in said, f"{full} is in no page"


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_version_is_the_changelog_s_newest():
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in {"Unreleased", version}
    assert version in headings or headings == ["Unreleased"]
