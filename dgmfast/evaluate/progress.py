"""The progress bar of an evaluation."""

from __future__ import annotations


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def progress_bar(total: int, show: bool, initial: int = 0):
    """A progress bar over the samples of all rows, with the remaining time; it does nothing if `show` is false."""
    if not show:
        return _NoBar()
    from tqdm import tqdm  # the ops and models do not depend on it

    return tqdm(total=total, initial=initial, unit="sample", unit_scale=True, desc="log p(x)")
