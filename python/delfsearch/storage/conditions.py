"""From Where to SQL on the image table. What was given travels as bound parameters alone."""

from __future__ import annotations

import json
from typing import Any

from delfsearch.where import NUMBER_COLUMNS, TEXT_COLUMNS, Bounds, OneOf, Range, Where

# Each value is a parameter of its own up to here: SQLite before 3.32 takes 999 of them.
_FEW = 100


def sql_of(where: Where) -> tuple[str, list[Any]]:
    """Return what follows WHERE and its parameters; "" where only ids are asked for."""
    parts = [_condition(name, condition) for name, condition in where.conditions]
    if where.box is not None:
        parts.append(_in_box(where.box))
    text = " AND ".join(f"({sql})" for sql, _ in parts)
    return text, [argument for _, arguments in parts for argument in arguments]


class _Term:
    """What is compared: SQL of a value, of its JSON type, and the parameters that each takes."""

    def __init__(self, name: str) -> None:
        self.is_column = name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)
        self.argument: list[Any] = []
        if self.is_column:
            self.value = name
        elif json.dumps(name) == f'"{name}"' and name:
            # The name as it stands in the stored text, so that a path finds it.
            self.value, self.type = "json_extract(metadata, ?)", "json_type(metadata, ?)"
            self.argument = [f'$."{name}"']
        else:
            each = "FROM json_each(images.metadata) WHERE key = ?"
            self.value, self.type = f"(SELECT value {each})", f"(SELECT type {each})"
            self.argument = [name]


def _condition(name: str, condition: OneOf | Range) -> tuple[str, list[Any]]:
    term = _Term(name)
    if isinstance(condition, Range):
        return _in_range(term, condition)
    return _one_of(term, condition)


def _one_of(term: _Term, condition: OneOf) -> tuple[str, list[Any]]:
    values = [value for value in condition.values if value is not None]
    sql, arguments = "0", []
    if len(values) == 1:
        sql, arguments = f"{term.value} = ?", [*term.argument, *values]
    elif values:
        marks, given = ", ".join("?" * len(values)), values
        if len(values) > _FEW:
            marks, given = "SELECT value FROM json_each(?)", [json.dumps(values)]
        sql, arguments = f"{term.value} IN ({marks})", [*term.argument, *given]
    if not term.is_column and any(isinstance(value, str) for value in values):
        # A list or an object has the form of a text.
        sql = f"{sql} AND {term.type} NOT IN ('array', 'object')"
        arguments += term.argument
    if None in condition.values:
        sql = f"({sql}) OR {term.value} IS NULL"
        arguments += term.argument
    return sql, arguments


def _in_range(term: _Term, condition: Range) -> tuple[str, list[Any]]:
    parts, arguments = [], []
    for sign, end in ((">=", condition.minimum), ("<=", condition.maximum)):
        if end is not None:
            parts.append(f"{term.value} {sign} ?")
            arguments += [*term.argument, end]
            is_text = isinstance(end, str)
    if not term.is_column:
        # To SQLite every text is greater than every number.
        types = "('text')" if is_text else "('integer', 'real')"
        parts.append(f"{term.type} IN {types}")
        arguments += term.argument
    return " AND ".join(parts), arguments


def _in_box(box: Bounds) -> tuple[str, list[Any]]:
    south, west, north, east = box
    arguments: list[Any] = [south, north, west, east]
    joined = "AND" if west <= east else "OR"
    sides = f"longitude >= ? {joined} longitude <= ?"
    # The 180th meridian has two names.
    for edge, other in ((west, -180.0), (east, 180.0)):
        if edge == other:
            sides = f"({sides}) OR longitude = ?"
            arguments.append(-other)
    return f"latitude >= ? AND latitude <= ? AND ({sides})", arguments
