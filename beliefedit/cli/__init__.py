"""The command line `beliefedit COMMAND`: one module per command, imported when it is used."""

from __future__ import annotations

from importlib import import_module

import click

from beliefedit.errors import BeliefEditError

COMMANDS = {
    "edit": "Edit a model by requests from a file, and score the edits.",
    "tune": "Find hyperparameters of an editor for the model of a run.",
    "playground": "Open the playground of a run as a page in the browser.",
}
"""Commands and their descriptions. `beliefedit.cli.<name>` has the command of that name."""


class _Commands(click.Group):
    """A group that imports a command's module only when the command is used or explained.

    Errors of the package become a message and exit code 1.
    """

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except BeliefEditError as error:
            raise click.ClickException(str(error)) from None

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"beliefedit.cli.{name}"), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Commands)
def main() -> None:
    """Edit language models and compare them with an exact Bayesian agent."""
