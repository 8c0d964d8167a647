"""`clinrag search` and `clinrag ask`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from api.cli.context import CliContext, pass_context
from api.cli.options import NAMED, WORDS, collection_option, json_option, scope_of, scope_options

if TYPE_CHECKING:
    from rag.search import LanguagePolicy, Mode

_K = click.option("-k", type=click.IntRange(1, 100), default=10, show_default=True, help="How many passages.")
_POLICY = click.option(
    "--language-policy",
    type=click.Choice(["balanced", "any", "same"]),
    default="balanced",
    show_default=True,
    help="How languages compete: fairly, by raw score, or only the query's own.",
)


@click.command()
@click.argument("query", type=WORDS)
@collection_option
@_K
@scope_options
@click.option(
    "--mode", type=click.Choice(["hybrid", "dense", "lexical"]), default="hybrid", show_default=True, help="Which arms."
)
@_POLICY
@click.option("--expand/--no-expand", default=True, help="Look for other forms of abbreviations and terms, too.")
@json_option
@pass_context
def search(
    context: CliContext,
    /,
    query: str,
    collection: str,
    k: int,
    mode: Mode,
    language_policy: LanguagePolicy,
    expand: bool,
    as_json: bool,
    **scope: object,
) -> None:
    """Find passages, whatever language they are in."""
    from api.service import Question

    question = Question(query, collection, scope_of(scope), k, mode, language_policy, expand)
    result = context.service.search(question)
    if as_json:
        click.echo(result.json_text())
        return
    from api.cli.output import print_search

    print_search(result)


@click.command()
@click.argument("question", type=WORDS)
@collection_option
@_K
@scope_options
@_POLICY
@click.option(
    "--generator",
    type=NAMED,
    metavar="NAME",
    help="extractive, or a chat model such as ollama:llama3.1 [CLINRAG_GENERATORS, extractive].",
)
@json_option
@pass_context
def ask(
    context: CliContext,
    /,
    question: str,
    collection: str,
    k: int,
    language_policy: LanguagePolicy,
    generator: str | None,
    as_json: bool,
    **scope: object,
) -> None:
    """Answer a question with sentences that each point to a note."""
    from api.service import Question

    asked = Question(question, collection, scope_of(scope), k, "hybrid", language_policy)
    result = context.service.ask(asked, generator)
    if as_json:
        click.echo(result.json_text())
        return
    from api.cli.output import print_answer

    print_answer(result)
