"""The command group, which prints errors in one line, and the options that several commands share."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dgmfast import __version__
from dgmfast.errors import INSTALL, out_of_memory
from dgmfast.plugins import import_module
from dgmfast.runs import error_line, is_lost_process

try:
    import click
except ImportError:  # click is in the extra that only the command line needs
    sys.stderr.write(f"Error: the command line needs click, of the extra dgmfast[train]: {INSTALL}\n")
    raise SystemExit(2) from None

USER_ERROR, INTERRUPTED = 2, 130
LONGEST = 1000  # characters of an error message
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))  # with tens of thousands, OpenMP causes a segmentation fault


class OneLineErrors(click.Group):
    """A group whose commands report every foreseeable error in one line instead of a traceback."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **named: Any) -> Any:
        """Run a command, and exit with its exit code."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*arguments, standalone_mode=False, **named)
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning  # type: ignore[assignment]
            try:
                code = run(*arguments, standalone_mode=False, **named)
            except click.exceptions.NoArgsIsHelpError as error:
                error.show()
                code = error.exit_code
            except click.ClickException as error:
                code = _fail(error, error.format_message())
            except (click.Abort, KeyboardInterrupt):
                code = INTERRUPTED
            except ImportError as error:
                code = _fail(error, f"{error}, of the extra dgmfast[train]: {INSTALL}")
            except (OSError, ValueError, TypeError, MemoryError) as error:
                code = _fail(error, str(error) or type(error).__name__)
            except RuntimeError as error:
                first = str(error).split("\n")[0]
                if out_of_memory(error):
                    code = _fail(error, f"out of memory: {first}")
                elif is_lost_process(error):
                    code = _fail(error, f"another process is gone, or does not answer: {first}")
                else:
                    raise
        sys.exit(code if isinstance(code, int) else 0)


def _fail(error: BaseException, message: str) -> int:
    """Print the error, unless another process does, and return the exit code."""
    message = " ".join(message.split())
    line = error_line(error, message if len(message) <= LONGEST else f"{message[:LONGEST]} …")
    if line is not None:
        click.echo(line, err=True)
    return USER_ERROR


def _one_line_warning(message: Warning | str, *details: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


def _set_threads(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    if value is not None:
        torch.set_num_threads(value)


THREADS = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    callback=_set_threads,
    expose_value=False,
    help="Threads to compute with [all cores].",
)
RUN = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
DATA_DIR = click.option(
    "--data-dir", envvar="DGMFAST_DATA_DIR", type=click.Path(path_type=Path), help="Folder of the data sets [DGMFAST_DATA_DIR]."
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")


def _import_modules(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> None:
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    for name in names:
        import_module(name)


@click.group(cls=OneLineErrors)
@click.version_option(__version__, prog_name="dgmfast")
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    is_eager=True,
    expose_value=False,
    callback=_import_modules,
    help="Import a module that registers models, likelihoods or recipes. May be given several times.",
)
def main() -> None:
    """Train and evaluate deep generative models: fused ops, exact bounds, log p(x) in constant memory."""
