"""The slow tier is what ``tests/slow.txt`` lists, and everything that it lists is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tiers import slow_tests

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("entry", sorted(slow_tests()))
def test_a_listed_test_is_there(entry: str) -> None:
    file, _, function = entry.partition("::")
    path = ROOT / file
    assert path.is_file(), f"tests/slow.txt: {entry}: there is no such file"
    names = {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if hasattr(node, "name")}
    assert not function or function in names, f"tests/slow.txt: {entry}: there is no such test"


def test_listed_tests_have_the_marker(request: pytest.FixtureRequest) -> None:
    listed = slow_tests()
    for item in request.session.items:
        function = item.nodeid.partition("[")[0]
        expected = function in listed or function.partition("::")[0] in listed
        assert (item.get_closest_marker("slow") is not None) == expected, item.nodeid
