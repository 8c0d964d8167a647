"""What every command gets: the settings, and a service made when it is first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from api.settings import Settings
from indexer.errors import ArgumentError

if TYPE_CHECKING:
    from api.service import Service


@dataclass
class CliContext:
    """``if_interrupted`` is what a command says after Ctrl-C, when there is something to say."""

    settings: Settings
    if_interrupted: str | None = None
    _service: Service | None = None

    @classmethod
    def of(cls, settings: Settings) -> CliContext:
        """Return the context for these settings.

        Raises:
            ArgumentError: something is there that is no folder.
        """
        folder = settings.home
        if folder.exists() and not folder.is_dir():
            raise ArgumentError(
                "home", f"{folder} is not a folder; --home or CLINRAG_HOME names where collections live"
            )
        return cls(settings)

    @property
    def service(self) -> Service:
        """The service; making it imports what the command line's help does not need."""
        if self._service is None:
            from api.wiring import build_service

            self._service = build_service(self.settings)
        return self._service

    def close(self) -> None:
        """Close what was opened."""
        if self._service is not None:
            self._service.close()


pass_context = click.make_pass_decorator(CliContext)
