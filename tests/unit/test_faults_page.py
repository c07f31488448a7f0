"""The page on faults names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs/faults.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| Fault |")
]


def names_of_all_tests() -> set[str]:
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_each_fault_names_tests_that_exist_or_says_that_it_is_open() -> None:
    existing = names_of_all_tests()
    assert len(ROWS) > 30
    for row in ROWS:
        shown_by = row.rstrip(" |").rpartition(" | ")[2]
        named = re.findall(r"`(\w+)`", shown_by)
        assert named or shown_by == "open", row
        assert set(named) <= existing, f"{set(named) - existing} in: {row}"
