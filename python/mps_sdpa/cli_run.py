# SPDX-License-Identifier: MIT
"""`mps-sdpa run`: executes an unchanged program with torch's attention replaced by ours.

The program gets what Python itself would give it: `__main__`, `sys.argv`, `sys.path`, its own
tracebacks, exit code and signals. It is executed outside of click, and an uncaught exception
propagates to the interpreter, which alone decides how the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

import click

#: Has the statistics printed when the process ends.
Report = Callable[[], Any]


@click.command(
    short_help="run an unchanged torch program on us",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="\b\nExamples:\n  mps-sdpa run train.py --epochs 2\n  mps-sdpa run -m package.train",
)
@click.option("-m", "module", is_flag=True, help="PROGRAM is a module's name, as in `python -m`.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON, on stderr.")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    module: bool, as_json: bool, program: str, arguments: tuple[str, ...]
) -> Callable[[], None]:
    """Runs PROGRAM with enable(), then prints which back ends ran and why others did not."""
    # Registered before the program's own exit handlers, so it runs after them.
    report = functools.partial(atexit.register, _print_json if as_json else _print_statistics)
    if module:
        return functools.partial(_run_module, program, arguments, report)
    if not Path(program).is_file():
        raise click.UsageError(f"there is no file {program!r}")
    return functools.partial(_run_script, Path(program), arguments, report)


def _run_script(path: Path, arguments: tuple[str, ...], report: Report) -> None:
    main = ModuleType("__main__")
    main.__file__ = str(path)
    sys.path[0] = str(path.resolve().parent)
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except SyntaxError:
        sys.excepthook = _without_our_frames(sys.excepthook)
        raise
    _execute(main, code, [str(path), *arguments], report)


def _run_module(name: str, arguments: tuple[str, ...], report: Report) -> None:
    sys.path[0] = str(Path.cwd())
    spec = _find(name)
    if spec is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        print(f"Error: there is no module {name!r} that can be run", file=sys.stderr)
        sys.exit(2)
    main = ModuleType("__main__")
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
    main.__file__ = spec.origin
    _execute(main, spec.loader.get_code(spec.name), [str(spec.origin), *arguments], report)


def _find(name: str) -> Any:
    """The module's spec; a package stands for its `__main__`."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            return importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError:
        return None
    return spec


def _execute(main: ModuleType, code: CodeType, argv: list[str], report: Report) -> None:
    import mps_sdpa

    report()
    mps_sdpa.enable()
    sys.modules["__main__"] = main
    sys.argv = argv
    sys.excepthook = _without_our_frames(sys.excepthook)
    exec(code, main.__dict__)


Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def _without_our_frames(hook: Hook) -> Hook:
    """The interpreter's hook, shown only what lies below the frames of this command."""

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        below = traceback
        while below is not None and below.tb_frame.f_code.co_filename != __file__:
            below = below.tb_next
        while below is not None and below.tb_frame.f_code.co_filename == __file__:
            below = below.tb_next
        hook(kind, error.with_traceback(below), below)

    return show


def _print_statistics() -> None:
    import mps_sdpa

    _say(_statistics("attention calls", mps_sdpa.get_call_stats()))
    _say(_statistics("attention fallbacks", mps_sdpa.get_fallback_stats()))


def _print_json() -> None:
    import mps_sdpa

    found = {"calls": mps_sdpa.get_call_stats(), "fallbacks": mps_sdpa.get_fallback_stats()}
    _say(json.dumps(found))


def _say(line: str) -> None:
    """On stderr, below what the program has printed; either may have been closed by it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")


def _statistics(title: str, counts: dict[str, int]) -> str:
    if not counts:
        return f"mps-sdpa: {title}: none"
    parts = [f"{name} {count}" for name, count in sorted(counts.items(), key=lambda i: -i[1])]
    return f"mps-sdpa: {title}: {', '.join(parts)}"
