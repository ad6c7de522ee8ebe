# pyarrow has no types, so that all it returns is unknown to pyright.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
"""The tables of a LeRobot dataset, checked as they are read: whatever is wrong is said with its file and column.

Shapes: N rows, D numbers of a feature.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.data.lerobot_info import Info
from treadle.errors import ConfigError
from treadle.reading import library, parse_json, read_text, shown

_MOST_ROWS = 10**8
_MOST_LINES = 10**7
"""Episodes or tasks of a file of lines."""


def read_tasks(directory: Path, info: Info) -> dict[int, str]:
    """Instructions by `task_index`. In version 3 the text is the index of a pandas table: a column `task`, or one
    without a name.
    """
    if not info.joined:
        path, found = directory / lerobot.TASK_LINES, dict[int, str]()
        for number, line in read_lines(path, directory):
            index, text = line.get("task_index"), line.get("task")
            if type(index) is not int or not isinstance(text, str):
                raise ConfigError(
                    f"{path}: line {number}: found {shown(line)}; allowed: task_index, a whole number, and task, a text"
                )
            found[index] = text
        return found
    path = directory / lerobot.TASKS
    table = read_table(path, directory)
    texts = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if not texts:
        raise ConfigError(f"{path} has no column 'task'; it has {', '.join(table.column_names)}")
    numbers, said = whole_numbers(table, "task_index", path), table[texts[0]].to_pylist()
    if wrong := [text for text in said if not isinstance(text, str)]:
        raise ConfigError(f"{path}: column {texts[0]!r} holds {wrong[0]!r}, which is no text")
    return dict(zip(numbers.tolist(), said, strict=True))


def read_tables(
    directory: Path, folder: str, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[Path, Any]]:
    """The parquet files below a folder, one table each, of the columns that are wanted, without statistics."""
    paths = sorted((directory / folder).glob("*/*.parquet"))
    if not paths:
        raise ConfigError(f"{directory}: {folder} is missing; the dataset is incomplete")
    for path in paths:
        yield path, read_table(path, directory, wanted)


def read_lines(path: Path, directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The tables of a file that has one as JSON on each line, with the line's number. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{directory}: {path.relative_to(directory)} is missing; the dataset is incomplete")
    for number, text in enumerate(read_text(path, ConfigError).splitlines(), 1):
        if number > _MOST_LINES:
            raise ConfigError(f"{path}: more than {_MOST_LINES} lines")
        if text.strip():
            line = parse_json(text, f"{path}: line {number}", ConfigError)
            if not isinstance(line, dict):
                raise ConfigError(f"{path}: line {number}: found {shown(line)}; allowed: a table of keys")
            yield number, cast("dict[str, Any]", line)


def column(table: Any, name: str, path: Path) -> Any:
    """A column without gaps as one array. Raises ConfigError where it is not there, or a row of it is null."""
    if name not in table.column_names:
        raise ConfigError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}")
    found = table[name].combine_chunks()
    if isinstance(found, pa.ChunkedArray):
        found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], found.type)
    found = found.storage if isinstance(found, pa.ExtensionArray) else found
    if found.null_count:
        row = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
        raise ConfigError(f"{path}: column {name!r} has no value in row {row}")
    return found


def whole_numbers(table: Any, name: str, path: Path) -> NDArray[np.int64]:
    """A column [N] of whole numbers, of whatever type. Raises ConfigError."""
    return _cast(column(table, name, path), pa.int64(), name, path, "whole numbers")


def numbers(table: Any, name: str, path: Path) -> NDArray[np.float64]:
    """A column [N] of finite numbers. Raises ConfigError."""
    found: NDArray[np.float64] = _cast(column(table, name, path), pa.float64(), name, path, "numbers")
    for row in np.flatnonzero(~np.isfinite(found))[:1].tolist():
        raise ConfigError(f"{path}: column {name!r} is {found[row]} in row {row}")
    return found


def vectors(table: Any, name: str, size: int, path: Path) -> NDArray[np.float32]:
    """A column of numbers, or of lists of `size` of them in every row, as [N, D] float32. Raises ConfigError."""
    found = column(table, name, path)
    if pa.types.is_nested(found.type):
        if pa.types.is_struct(found.type) or pa.types.is_nested(found.type.value_type):
            raise ConfigError(f"{path}: column {name!r} holds {found.type}; Treadle reads lists of {size} numbers")
        lengths = pc.list_value_length(found).to_numpy(zero_copy_only=False)
    else:
        lengths = np.ones(len(found), np.int64)
    for row in np.flatnonzero(lengths != size)[:1].tolist():
        raise ConfigError(
            f"{path}: column {name!r} has {lengths[row]} numbers in row {row}, and {lerobot.INFO} declares {size}"
        )
    values = found.flatten() if pa.types.is_nested(found.type) else found
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // size
        raise ConfigError(f"{path}: column {name!r} has an empty place in row {row}")
    # Numbers beyond float32 become infinite, and are refused as such with their episode.
    with np.errstate(over="ignore"):
        return _cast(values, pa.float64(), name, path, "numbers").astype(np.float32).reshape(-1, size)


def _cast(values: Any, kind: Any, name: str, path: Path, wanted: str) -> NDArray[Any]:
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise ConfigError(f"{path}: column {name!r} holds {values.type}, not {wanted}")
    try:
        return pc.cast(values, kind).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path}: column {name!r} does not hold {wanted}: {error}") from error


def read_table(path: Path, directory: Path, wanted: Callable[[str], bool] = lambda _: True) -> Any:
    """The columns of a parquet file that are wanted, but for statistics. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{directory}: {path.relative_to(directory)} is missing; the dataset is incomplete")
    with library(path, ConfigError, "parquet"):
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > _MOST_ROWS:
            raise ConfigError(f"{path}: {file.metadata.num_rows} rows; a file of a dataset has at most {_MOST_ROWS}")
        names: Iterable[str] = file.schema_arrow.names
        return file.read([name for name in names if wanted(name) and not name.startswith("stats/")])
