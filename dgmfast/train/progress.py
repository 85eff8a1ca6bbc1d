"""The progress bar of a training run."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 5.0  # between two lines if there is no terminal


class Progress:
    """A progress bar over all steps on a terminal; without a terminal, a line at the end of some epochs."""

    def __init__(self, name: str, epoch: int, epochs: int, steps: int, enabled: bool = True) -> None:
        self.enabled, self.name, self.epochs, self.bar, self.last_line = enabled, name, epochs, None, -LINE_SECONDS
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=epochs * steps, initial=epoch * steps, unit="step", dynamic_ncols=True, smoothing=0.05)
            self.bar.set_description(f"{name} epoch {epoch}/{epochs}", refresh=False)

    def steps(self, count: int) -> None:
        """Advance by `count` steps."""
        if self.bar is not None:
            self.bar.update(count)

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the record of a finished epoch."""
        bounds = " ".join(f"{name} {value:.2f}" for name, value in record.items() if name.endswith("elbo"))
        errors = "".join(f", {name} {value:.2f} %" for name, value in record.items() if name.endswith("error"))
        message = f"{bounds} nats{errors}"
        title = f"{self.name} epoch {record['epoch']}/{self.epochs}"
        if self.bar is not None:
            self.bar.set_description(title, refresh=False)
            self.bar.set_postfix_str(message)
        elif self.enabled and (time.monotonic() >= self.last_line + LINE_SECONDS or record["epoch"] == self.epochs):
            self.last_line = time.monotonic()
            print(f"{title}: {message}, {record['seconds']:.2f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
