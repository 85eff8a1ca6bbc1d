"""The commands demo, info and bench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import torch

from dgmfast import _C, __version__
from dgmfast.cli.group import THREADS, click
from dgmfast.errors import InputError


@click.command()
@click.option("--out", default="demo_out", show_default=True, type=click.Path(path_type=Path))
@THREADS
def demo(out: Path) -> None:
    """Train a VAE and an IWAE on digits, evaluate them, and draw figures. This takes about a minute."""
    from dgmfast.examples.digits import run_demo

    run_demo(out)


@click.command()
def info() -> None:
    """Print what this installation uses: versions, instruction set, CUDA architectures, GPU and threads."""
    architectures = _C.cuda_architectures
    architectures = architectures() if callable(architectures) else architectures
    built = architectures if isinstance(architectures, str) else ", ".join(map(str, architectures))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "dgmfast": __version__,
        "torch": f"{torch.__version__}, for which dgmfast was built",  # another one is refused
        "instruction set": _C.isa(),
        "CUDA architectures": built or "none (built without CUDA)",
        "GPU": gpu,
        "threads": torch.get_num_threads(),
    }
    for name, value in rows.items():
        click.echo(f"{name:<20}{value}")


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> NoReturn:
    """Run the benchmarks, which need the source tree. The same as python -m bench."""
    if not Path("bench", "__main__.py").is_file():
        raise InputError("the benchmarks are not installed: run this in dgmfast's source tree")
    sys.exit(subprocess.run([sys.executable, "-m", "bench", *arguments]).returncode)
