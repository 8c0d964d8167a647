"""`clinrag`: the group, and how an error becomes a message and an exit code.

Nothing heavy is imported here or by the modules of the commands: `clinrag --help` answers at once.
"""

from __future__ import annotations

import errno
import gc
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from api.cli import (
    collections,
    demo,
    encoders,
    erasing,
    evaluate,
    notes,
    search,
    serve,
    store,
    train,
)
from api.cli.context import CliContext
from api.cli.options import Place
from api.cli.terminal import printable
from api.codes import INTERRUPTED_EXIT, code_of, message_of
from api.settings import calm_threads, from_environment
from indexer.errors import ClinragError


class Failure(click.ClickException):
    """A message for the user; exit code 1."""


class Mistake(Failure):
    """A message about something that the user can mend; exit code 2."""

    exit_code = 2


class Interrupted(Failure):
    """Ctrl-C; exit code 130."""

    exit_code = INTERRUPTED_EXIT


def _failure(message: str, error: BaseException) -> Failure:
    return (Mistake if code_of(error).exit_code == Mistake.exit_code else Failure)(printable(message))


class Commands(click.Group):
    """A group whose commands end with a message and a code, never with a traceback (but for CLINRAG_DEBUG=1)."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the command line; ``--help`` and ``--version`` are answered here.

        Raises:
            Failure: the answer could not be written.
        """
        try:
            return super().make_context(*arguments, **options)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise _failure(_os_message(error), error) from None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command.

        Raises:
            Failure: whatever went wrong, as a user reads it.
        """
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except click.Abort as error:
            raise _unanswered(error) from None
        except KeyboardInterrupt:
            going_on = ctx.obj.if_interrupted if isinstance(ctx.obj, CliContext) else None
            raise Interrupted(f"interrupted; {going_on}" if going_on else "interrupted") from None
        except ClinragError as error:
            if _debug(ctx):
                raise
            raise _failure(message_of(error), error) from None
        except OSError as error:
            if error.errno == errno.EPIPE or _debug(ctx):
                raise
            raise _failure(_os_message(error), error) from None
        except Exception as error:
            if _debug(ctx):
                raise
            raise Failure(f"{message_of(error)}; CLINRAG_DEBUG=1 shows where it came from") from None


def _unanswered(error: click.Abort) -> BaseException:
    """Return what a question that got no yes ends with: Ctrl-C, nobody there to ask, or a no."""
    if isinstance(error.__context__, KeyboardInterrupt):
        click.echo(err=True)
        return Interrupted("interrupted; nothing was changed")
    if isinstance(error.__context__, EOFError):
        click.echo(err=True)
        return Mistake("nobody is there to answer; --yes does it without asking")
    return error


def _debug(ctx: click.Context) -> bool:
    return isinstance(ctx.obj, CliContext) and ctx.obj.settings.debug


def _os_message(error: OSError) -> str:
    if code_of(error).status == 507 or error.strerror is None:
        return message_of(error)
    if not isinstance(error.filename, str):
        return error.strerror
    return f"{error.strerror}: {error.filename}; check the path and its permissions"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version=metadata.version("clinrag"), prog_name="clinrag")
@click.option("--home", type=Place(file_okay=False), help="Where collections live [CLINRAG_HOME].")
@click.pass_context
def cli(ctx: click.Context, home: Path | None) -> None:
    """Index clinical notes in many languages, search them across languages, ask them with cited answers."""
    ctx.obj = CliContext.of(from_environment(home=home))
    ctx.call_on_close(ctx.obj.close)


for command in (
    store.index,
    search.search,
    search.ask,
    collections.collections,
    notes.notes,
    erasing.receipts,
    encoders.embed,
    encoders.encoders,
    serve.serve,
    serve.keys,
    demo.demo,
    evaluate.evaluate,
    train.train,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line of this process."""
    calm_threads()
    for stream in (sys.stdout, sys.stderr):
        # Notes hold any script; a terminal that cannot show a character gets a mark instead of a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # A file or another program gets the text as it is, and JSON is UTF-8 by its definition, whatever the locale says.
    if hasattr(sys.stdout, "reconfigure") and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    # A command makes a million objects that stay (modules, most of all) and little garbage: looking through them again
    # and again, and once more at the end, takes as long as a search.
    gc.set_threshold(50_000)
    try:
        cli(prog_name="clinrag")
    finally:
        gc.freeze()
