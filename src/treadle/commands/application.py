"""How the command line meets errors, and how help shows the configuration's keys."""

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from treadle.errors import ConfigError, Terminated, TreadleError

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM, as shells have them."""


_UsageError: Any = typer.BadParameter.__bases__[0]
"""Of an unknown command or option; typer has it from click, or from a copy of click."""


def _complain(said: str) -> None:
    # A message may hold brackets, which are markup to rich, and is one line however narrow the terminal.
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), said))


class Application(TyperGroup):
    """Errors that are the user's to mend become one message and exit code 2; any other is a bug and shows its trace."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except TreadleError as error:
            _complain(str(error))
            raise typer.Exit(2) from error
        except _UsageError as error:
            said = error.format_message().rstrip(".")
            if "\n" in said:
                raise  # the help of a group that was given no command
            _complain(f"{said}; see {error.ctx.command_path if error.ctx else 'treadle'} --help")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED) from error


class CommandWithKeys(TyperCommand):
    """A command that takes `key=value`: its help ends with the keys, from the configuration's documentation. Commands
    that share a configuration name the one whose keys they take.
    """

    @property
    def reference(self) -> str:
        """The command whose keys these are."""
        return "train" if self.name == "plan" else str(self.name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises ConfigError where a setting was written as an option."""
        options = {option for parameter in self.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in args:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in options and (meant := _settings(name, self.reference)):
                ways = " or ".join(f"{key}=VALUE" for key in meant)
                raise ConfigError(f"{name}: settings are given without dashes, as {ways}")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the command, then the table of keys."""
        from treadle.commands.keys import key_table

        super().format_help(ctx, formatter)
        Console().print(key_table(self.reference))


def _settings(option: str, command: str) -> list[str]:
    """The keys of a command that an option may have been meant for."""
    from treadle.commands.keys import REFERENCES
    from treadle.config.describe import describe

    name = option.lstrip("-").replace("-", "_")
    keys = [key.name for key in describe(REFERENCES[command].model)]
    return [name] if name in keys else [key for key in keys if key.rpartition(".")[2] == name]
