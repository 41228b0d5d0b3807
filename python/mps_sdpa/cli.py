# SPDX-License-Identifier: MIT
"""The command `mps-sdpa`. Each subcommand lives in a module of its own, imported when it is
called."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

__all__ = ["main"]

_COMMANDS = {
    "list-backends": ("cli_inspect", "the back ends in order of preference, and why not"),
    "self-test": ("cli_check", "is this installation right? Under a second"),
    "correctness": ("cli_check", "compare a back end with double precision, case by case"),
    "benchmark": ("cli_benchmark", "time a back end against torch's own attention"),
    "report": ("cli_benchmark", "draw one or two saved benchmarks as one HTML page"),
    "explain": ("cli_inspect", "which back end would run a problem, which kernel, and why"),
    "calibrate": ("cli_inspect", "measure from which size on each back end beats torch"),
    "run": ("cli_run", "run an unchanged torch program on us"),
    "demo": ("cli_demo", "train a small language model with torch's attention and with ours"),
}


class LazyGroup(click.Group):
    """Knows the names and one-liners of its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mps_sdpa.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Shell completion: eval "$(_MPS_SDPA_COMPLETE=bash_source mps-sdpa)" (or zsh_source, '
    "fish_source). `mps-sdpa COMMAND --help` shows each command's flags and examples.",
)
@click.version_option(package_name="mps-sdpa", prog_name="mps-sdpa")
@click.pass_context
def group(context: click.Context) -> None:
    """Fused attention for PyTorch: inspect, check and time it."""
    if context.invoked_subcommand != "run":  # whose output is the program's own
        _replace_what_cannot_be_shown()
    _check_environment()


def _replace_what_cannot_be_shown() -> None:
    """On a terminal without Unicode a question mark stands for a character, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _check_environment() -> None:
    """A variable with a value that cannot be ends like a mistyped flag."""
    from mps_sdpa import _core
    from mps_sdpa.backends import check_backend, default_backend

    try:
        check_backend(default_backend())
        _core.instruction_set()
    except (KeyError, RuntimeError) as error:
        raise click.UsageError(error.args[0]) from error


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command. What a user can mistype ends in one line and exit code 2."""
    try:
        result = group.main(arguments, prog_name="mps-sdpa", standalone_mode=False)
        if sys.stdout is not None and not callable(result):
            sys.stdout.flush()
    except click.ClickException as error:
        print(f"Error: {error.format_message()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, or whatever stdout leads to
        _abandon_output()
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except click.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    # `run` hands back the program to execute, so that nothing of click is around it.
    sys.exit(_execute(result) if callable(result) else result or 0)


def _abandon_output() -> None:
    """What could not be written is not tried again when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _execute(program: Callable[[], Any]) -> int:
    program()
    return 0
