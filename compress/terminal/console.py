"""Where results and progress are shown: results on stdout, progress on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from compress.units import duration

if TYPE_CHECKING:
    from compress.progress import Progress

NOT_A_TERMINAL_WIDTH = 200  # wide enough that no row of the result table is wrapped in a log


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else NOT_A_TERMINAL_WIDTH
    # No markup: brackets in paths, in settings and in 'edgefold[train]' are text.
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def result_console() -> Console:
    """Return where results are shown."""
    return _console(stderr=False)


def progress_console() -> Console:
    return _console(stderr=True)


def new_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(
            name,
            justify="left" if name in ("target", "format", "engine", "limits", "student", "not beaten") else "right",
        )
    return table


class Narrator:
    """Receives progress and messages: one live line a stage on a terminal, a plain line an epoch elsewhere."""

    def __init__(self) -> None:
        self.console = progress_console()
        self.live: Live | None = None
        self.stage = ""

    def __call__(self, event: Progress | str) -> None:
        if isinstance(event, str):
            self.close()
            self.console.print(Text(event, style="yellow" if event.startswith("warning") else ""))
        elif self.console.is_terminal:
            self._draw(event)
        elif event.epoch_ended:
            self.console.print(Text(progress_line(event)))

    def _draw(self, event: Progress) -> None:
        if self.live is None or event.stage != self.stage:
            self.close()
            self.stage = event.stage
            self.live = Live(console=self.console, refresh_per_second=5)
            self.live.start()
        self.live.update(Text(progress_line(event), no_wrap=True, overflow="ellipsis"))
        if event.epoch_ended and event.epoch == event.epochs:
            self.close()

    def close(self) -> None:
        """Let the live line stand as it is and go on below it."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def progress_line(event: Progress) -> str:
    """Return the stage's line: epoch, loss terms, validation accuracy, rows per second, time left."""
    losses = "  ".join(
        f"{name} {value:.4f}" for name, value in event.losses.items() if name != "total" or len(event.losses) > 2
    )
    accuracy = "" if event.validation_accuracy is None else f"  validation {100 * event.validation_accuracy:.2f} %"
    ended = event.epoch_ended and event.epoch == event.epochs
    left = "  done" if ended else f"  {duration(event.seconds_left)} left"
    width = len(str(event.epochs))
    return (
        f"{event.stage}  epoch {event.epoch:>{width}}/{event.epochs}  {losses}{accuracy}"
        f"  {event.rows_per_s:,.0f} rows/s{left}"
    )
