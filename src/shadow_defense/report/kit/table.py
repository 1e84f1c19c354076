"""One table for page, document, file, terminal and data frame: typed rows under one list of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shadow_defense.errors import ConfigError, shown
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.report.kit.formatting import (
    MISSING,
    markdown_line,
    markdown_text,
    number,
    plain,
    signed_with_interval,
    with_interval,
)

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

R = TypeVar("R")


@dataclass(frozen=True)
class Cell:
    """A value, its difference to the first arm, and what the difference means; the latter two may be empty."""

    value: str
    difference: str = ""
    meaning: str = ""
    clear: bool = False


@dataclass(frozen=True)
class Column(Generic[R]):
    """One column: its head, and how to read and write it.

    Attributes:
        read: an estimate is written with its interval, a number with ``digits`` and ``unit``, a text as it is.
        about: what stands below the title, such as which direction is better.
        difference: to the first arm; written below the value, with what it means by ``meaning``.
    """

    title: str
    read: Callable[[R], Estimate | float | str | None]
    digits: int = 3
    unit: str = ""
    about: str = ""
    difference: Callable[[R], Estimate | None] = lambda row: None
    meaning: Callable[[R, Estimate], str] = lambda row, difference: ""

    def cell(self, row: R) -> Cell:
        """What stands in a row."""
        value, difference = self.read(row), self.difference(row)
        if isinstance(value, Estimate):
            text = with_interval(value, self.digits)
        elif isinstance(value, str):
            text = value
        else:
            text = MISSING if value is None else f"{number(value, self.digits)}{self.unit}"
        if difference is None or value is None:
            return Cell(text or MISSING)
        return Cell(
            text,
            signed_with_interval(difference, self.digits),
            self.meaning(row, difference),
            bool(difference.clear()),
        )


@dataclass(frozen=True)
class Table(Generic[R]):
    """Rows under columns, the first of which names the row.

    Attributes:
        kind: the class of the table on a page: ``scores`` in small print, ``words`` for text.
        group: the heading under which a row stands, the same for rows that follow one another; empty for none.
        mark: ``baseline``, ``front`` or nothing, for the look of a row.
    """

    title: str
    columns: Sequence[Column[R]]
    rows: Sequence[R]
    kind: str = ""
    group: Callable[[R], str] = lambda row: ""
    mark: Callable[[R], str] = lambda row: ""

    def groups(self) -> Iterator[tuple[str, list[tuple[str, list[Cell]]]]]:
        """For a page: each heading, with its rows' marks and cells."""
        for title, rows in groupby(self.rows, self.group):
            yield title, [(self.mark(row), [column.cell(row) for column in self.columns]) for row in rows]

    def markdown(self) -> str:
        """A table in GitHub's Markdown: differences in brackets, with a star where they are clear."""
        lines = [[markdown_text(column.title) for column in self.columns]]
        lines.append(["---", *["---:"] * (len(self.columns) - 1)])
        for row in self.rows:
            lines.append([_markdown_cell(column.cell(row)) for column in self.columns])
        return "\n".join(markdown_line(line) for line in lines)

    def csv(self) -> str:
        """A header and a line for each row, numbers in full precision; what does not exist is empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        writer.writerows([column.read(row) for column in self.columns] for row in self.rows)
        return buffer.getvalue()

    def terminal(self) -> TerminalTable:
        """For rich; names longer than 38 characters are folded. Differences are left to the page."""
        from rich.table import Table as TerminalTable
        from rich.text import Text

        # Text, not markup: names are the user's and may hold brackets, those out of data anything.
        table = TerminalTable(title=Text(shown(self.title)), title_justify="left", pad_edge=False)
        lines = [[shown(plain(column.cell(row).value)) for column in self.columns] for row in self.rows]
        for position, column in enumerate(self.columns):
            longest = max((len(line[position]) for line in lines), default=0)
            # Heads and names may break, numbers may not.
            if position:
                table.add_column(Text(column.title), justify="right", min_width=longest)
            else:
                table.add_column(Text(column.title), max_width=38, min_width=min(longest, 12), overflow="fold")
        for line in lines:
            table.add_row(*map(Text, line))
        return table

    def to_frame(self) -> Any:
        """A pandas data frame of what the columns read. Raises :class:`ConfigError` where pandas is missing."""
        try:
            import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ImportError as error:
            raise ConfigError("a data frame needs pandas: install it with `pip install pandas`") from error
        return pandas.DataFrame({column.title: [column.read(row) for row in self.rows] for column in self.columns})


def _markdown_cell(cell: Cell) -> str:
    if not cell.difference:
        return markdown_text(cell.value)
    return f"{cell.value} ({cell.difference}){markdown_text('*') if cell.clear else ''}"
