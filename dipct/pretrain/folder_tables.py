"""Tables of labels beside images: separated by commas, tabulators or blanks."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dipct.errors import FileFormatError

# Of a list of names, so many are told.
_NAMED = 10


def first_of(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def read_lines(path: Path) -> list[str]:
    """The lines of a text.

    Raises:
        FileFormatError: not a readable text, or empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: the table cannot be read ({error}).") from error
    if not lines:
        raise FileFormatError(f"{path}: the table is empty.")
    return lines


def table_columns(path: Path) -> list[str]:
    """Names of the columns of a table, separated by commas or tabulators.

    Raises:
        FileFormatError: not a readable text, or empty.
    """
    return _table(path)[0]


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Columns of a table by name.

    Args:
        path: a file whose first line names its columns, separated by commas or tabulators.
        names: of the columns wanted.

    Returns:
        The values of each, without blanks around them.

    Raises:
        FileFormatError: not a readable text, missing columns or values, rows of another length, or
            no row.
    """
    header, rows = _table(path)
    missing = [name for name in names if name not in header]
    if missing:
        raise FileFormatError(
            f"{path}: expected the columns {', '.join(names)}; {', '.join(missing)} cannot be "
            f"found. The first line holds {first_of(header)}."
        )
    return _picked(path, rows, [header.index(name) for name in names], len(header))


def read_positions(
    path: Path, positions: Sequence[int], *, width: int, skipped: int = 0
) -> list[list[str]]:
    """Columns of a text without names of columns, separated by blanks.

    Args:
        path: the file.
        positions: of the columns wanted, from 0.
        width: number of columns.
        skipped: lines before the first row.

    Returns:
        The values of each.

    Raises:
        FileFormatError: not a readable text, rows of another length, or no row.
    """
    lines = enumerate(read_lines(path)[skipped:], start=skipped + 1)
    rows = ((number, line.split()) for number, line in lines if line.strip())
    return _picked(path, rows, positions, width)


def look_up(
    path: Path, keys: Sequence[str], values: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Values of a table, in the order of names of images.

    Args:
        path: the table, for the message.
        keys: names that the table lists.
        values: one for each.
        names: of the images.

    Raises:
        FileFormatError: images that the table does not list.
    """
    found = dict(zip(keys, values, strict=True))
    missing = [name for name in names if name not in found]
    if missing:
        raise FileFormatError(
            f"{path}: {len(missing)} of the {len(names)} images are not listed: "
            f"{first_of(missing)}."
        )
    return [found[name] for name in names]


def check_values(
    path: Path, names: Sequence[str], values: Sequence[str], allowed: Sequence[str]
) -> None:
    """Raise a :class:`FileFormatError` unless all values of a column are allowed ones."""
    for name, value in zip(names, values, strict=True):
        if value not in allowed:
            raise FileFormatError(
                f"{path}: the value of {name} must be {' or '.join(allowed)}; got {value!r}."
            )


def _table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Header, and rows with the numbers of their lines."""
    lines = read_lines(path)
    reader = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",")
    header = [name.strip() for name in next(reader)]
    return header, ((reader.line_num, [value.strip() for value in row]) for row in reader if row)


def _picked(
    path: Path, rows: Iterable[tuple[int, list[str]]], positions: Sequence[int], width: int
) -> list[list[str]]:
    columns: list[list[str]] = [[] for _ in positions]
    for number, row in rows:
        if len(row) != width:
            raise FileFormatError(
                f"{path}, line {number}: expected {width} values; got {len(row)}. The file may be "
                "truncated or edited."
            )
        for column, position in zip(columns, positions, strict=True):
            if not row[position]:
                raise FileFormatError(f"{path}, line {number}: value {position + 1} is missing.")
            column.append(row[position])
    if not columns[0]:
        raise FileFormatError(f"{path}: the table has no row.")
    return columns
