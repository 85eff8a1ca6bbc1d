"""Translates a file of CUDA C++ to C++ for the emulator, line by line: python emulate.py SOURCE TARGET [--without-barrier N]

A launch becomes a call of the emulator, and shared memory becomes static memory that the emulator knows:

    kernel<<<grid, block, bytes, stream>>>(x)  ->  ::emu::launch("kernel", grid, block, bytes, stream, [&] { kernel(x); })
    __shared__ T a[8], b;                      ->  static T a[8], b; ::emu::shared(&a, sizeof a); ::emu::shared(&b, sizeof b);

--without-barrier leaves out the N-th __syncthreads() of the file, counted from 0. The tests must then fail.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

BARRIER = "__syncthreads()"


def closing(text: str, opening: int) -> int:
    """Returns the position of the bracket that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(text)):
        depth += text[i] in "([{"
        depth -= text[i] in ")]}"
        if depth == 0:
            return i
    raise ValueError("a bracket that is not closed")


def launches(text: str) -> str:
    """Rewrites every launch of a kernel as a call of the emulator."""
    while (at := text.find("<<<")) >= 0:
        begin = max(text.rfind(c, 0, at) for c in ";{}") + 1
        end = text.index(">>>", at)
        kernel, configuration = text[begin:at], text[at + 3 : end]
        opening = text.index("(", end)
        close = closing(text, opening)
        blank, kernel = kernel[: len(kernel) - len(kernel.lstrip())], kernel.strip()
        name = re.sub(r"\s+", " ", kernel)
        call = f'::emu::launch("{name}", {configuration}, [&] {{ {kernel}{text[opening : close + 1]}; }})'
        text = text[:begin] + blank + call + text[close + 1 :]
    return text


def shared_arrays(text: str) -> str:
    """Rewrites every declaration of shared memory as static memory that the emulator knows."""

    def rewrite(match: re.Match[str]) -> str:
        alignment, declaration = match[1] or "", match[2]
        names = re.findall(r"(\w+)\s*(?:\[|$|,)", re.sub(r"\[[^\]]*\]", "[", declaration))
        known = " ".join(f"::emu::shared(&{name}, sizeof {name});" for name in names)
        return f"{alignment} static {declaration}; {known}"

    return re.sub(r"__shared__\s+(alignas\([^)]*\))?\s*([^;]*);", rewrite, text)


def without_barrier(text: str, number: int) -> str:
    """Returns the text without its N-th barrier."""
    at = [found.start() for found in re.finditer(re.escape(BARRIER), text)][number]
    return text[:at] + "(void)0" + text[at + len(BARRIER) :]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--without-barrier", type=int)
    options = parser.parse_args()
    text = options.source.read_text()
    if options.without_barrier is not None:
        text = without_barrier(text, options.without_barrier)
    options.target.parent.mkdir(parents=True, exist_ok=True)
    options.target.write_text(f'#line 1 "{options.source}"\n{shared_arrays(launches(text))}')


if __name__ == "__main__":
    main()
