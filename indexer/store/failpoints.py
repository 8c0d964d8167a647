"""Named instants of the store where a test may end the process or make a step fail; in use nothing happens there."""

from __future__ import annotations

from collections.abc import Callable

_handler: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Let an installed handler act at this instant."""
    if _handler is not None:
        _handler(name)


def install(handler: Callable[[str], None] | None) -> None:
    """Have this called with the name at each instant of this process; ``None`` takes it away."""
    global _handler
    _handler = handler
