"""What the environment may say, with defaults. The one module that reads it; everything below takes values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from indexer.errors import ArgumentError

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of one process. Sizes are bytes, characters or counts as named; times are seconds.

    ``encoder`` is the name that new collections get (``None``: the shipped retriever where it is installed).
    ``generators`` are the ones that an HTTP caller may name; the first is the default: note text goes to no language
    model that whoever runs the server did not list. ``generator_url`` and ``generator_key`` say where a chat model is,
    for providers that take them. ``api_key`` is a key for both scopes beside the stored ones, for containers.
    ``vector_engine`` is one of those in `indexer.store.vector_engine`.
    ``master_key_file`` holds the key that opens those of encrypted collections; else ``passphrase`` does. The ``new_``
    ones are what ``collections rekey`` puts in their place.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    encoder: str | None = None
    generators: tuple[str, ...] = ("extractive",)
    generator_url: str | None = None
    generator_key: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    data: Path | None = None
    vector_engine: str = "auto"
    debug: bool = False
    log_level: str = "INFO"
    max_body_bytes: int = 32 * 1024 * 1024
    body_patience_s: float = 30.0
    max_notes: int = 10_000
    max_queued_jobs: int = 64
    max_concurrent_posts: int = 8
    max_concurrent_answers: int = 16
    writer_timeout_s: float = 10.0
    batch_notes: int = 64
    master_key_file: Path | None = None
    passphrase: str | None = field(default=None, repr=False)
    new_master_key_file: Path | None = None
    new_passphrase: str | None = field(default=None, repr=False)

    @property
    def loopback(self) -> bool:
        """Whether the server is reachable from this machine alone."""
        return self.host in LOOPBACK_HOSTS


def from_environment(environment: Mapping[str, str] | None = None, home: Path | None = None) -> Settings:
    """Return the settings of this process; an empty variable counts as absent, and ``home`` goes before its variable.

    ``CLINRAG_HOME``, ``CLINRAG_HOST``, ``CLINRAG_PORT``, ``CLINRAG_ENCODER``, ``CLINRAG_GENERATORS`` (comma separated),
    ``CLINRAG_GENERATOR_URL``, ``CLINRAG_GENERATOR_KEY``, ``CLINRAG_API_KEY``, ``CLINRAG_DATA``,
    ``CLINRAG_VECTOR_ENGINE``, ``CLINRAG_DEBUG``, ``CLINRAG_LOG_LEVEL``, ``CLINRAG_MAX_BODY_BYTES``,
    ``CLINRAG_MAX_NOTES``, ``CLINRAG_WRITER_TIMEOUT_S``,
    ``CLINRAG_BATCH_NOTES``, ``CLINRAG_MASTER_KEY_FILE``, ``CLINRAG_PASSPHRASE``, ``CLINRAG_NEW_MASTER_KEY_FILE``,
    ``CLINRAG_NEW_PASSPHRASE``.

    Raises:
        ArgumentError: a variable is not of the allowed form.
    """
    env = os.environ if environment is None else environment

    def text(name: str) -> str | None:
        return env.get(f"CLINRAG_{name}", "").strip() or None

    def path(name: str) -> Path | None:
        given = text(name)
        return _expanded(name, given) if given else None

    defaults = Settings(home=_default_home(env) if home is None else _expanded("HOME", str(home)))
    api_key = text("API_KEY")
    if api_key is not None and len(api_key) < 32:
        raise ArgumentError("CLINRAG_API_KEY", "is shorter than 32 characters; make one with: openssl rand -hex 32")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ArgumentError("CLINRAG_API_KEY", "holds what a header cannot carry; make one with: openssl rand -hex 32")
    level = (text("LOG_LEVEL") or defaults.log_level).upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ArgumentError("CLINRAG_LOG_LEVEL", "is none of DEBUG, INFO, WARNING, ERROR")
    generators = tuple(name.strip() for name in (text("GENERATORS") or "").split(",") if name.strip())
    if not all(name in defaults.generators or all(name.partition(":")[::2]) for name in generators):
        raise ArgumentError("CLINRAG_GENERATORS", "holds a name that is neither 'extractive' nor 'provider:model'")
    return Settings(
        home=defaults.home,
        host=text("HOST") or defaults.host,
        port=_whole(env, "PORT", defaults.port, 0, 65_535),
        encoder=text("ENCODER"),
        generators=generators or defaults.generators,
        generator_url=text("GENERATOR_URL"),
        generator_key=text("GENERATOR_KEY"),
        api_key=api_key,
        data=path("DATA"),
        vector_engine=text("VECTOR_ENGINE") or defaults.vector_engine,
        debug=(text("DEBUG") or "").lower() in ("1", "true", "yes"),
        log_level=level,
        max_body_bytes=_whole(env, "MAX_BODY_BYTES", defaults.max_body_bytes, 1_024, 2**31),
        max_notes=_whole(env, "MAX_NOTES", defaults.max_notes, 1, 1_000_000),
        writer_timeout_s=float(_whole(env, "WRITER_TIMEOUT_S", int(defaults.writer_timeout_s), 0, 3_600)),
        batch_notes=_whole(env, "BATCH_NOTES", defaults.batch_notes, 1, 10_000),
        master_key_file=path("MASTER_KEY_FILE"),
        passphrase=text("PASSPHRASE"),
        new_master_key_file=path("NEW_MASTER_KEY_FILE"),
        new_passphrase=text("NEW_PASSPHRASE"),
    )


def _default_home(env: Mapping[str, str]) -> Path:
    given = env.get("CLINRAG_HOME", "").strip()
    if given:
        return _expanded("HOME", given)
    data_home = env.get("XDG_DATA_HOME", "").strip()
    # The XDG specification: a relative path in the variable is invalid and is to be ignored.
    if data_home and Path(data_home).is_absolute():
        return Path(data_home) / "clinrag"
    return _expanded("HOME", "~/.local/share/clinrag")


def _expanded(name: str, given: str) -> Path:
    try:
        return Path(given).expanduser()
    except RuntimeError:  # a container's user without a name, or a name that is none
        raise ArgumentError(f"CLINRAG_{name}", "has to be a full path: ~ stands for no folder here") from None


def _whole(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    given = env.get(f"CLINRAG_{name}", "").strip()
    if not given:
        return default
    try:
        value = int(given)
    except ValueError:
        raise ArgumentError(f"CLINRAG_{name}", "is not a whole number") from None
    if not low <= value <= high:
        raise ArgumentError(f"CLINRAG_{name}", f"is not between {low} and {high}")
    return value


def calm_threads() -> None:
    """Let idle worker threads of torch and FAISS sleep rather than spin, unless the environment says otherwise.

    Spinning threads make every call several times slower as soon as another process wants the cores. It has to be said
    before those libraries are loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
