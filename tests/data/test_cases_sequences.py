"""Sequence files as people save them."""

import pytest

from reasonrec_fast.data import DataError, load_sequences
from reasonrec_fast.data.overlay import Overlaid


def load(folder, content):
    (folder / "sequences.txt").write_bytes(content)
    return load_sequences(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf7 30 10\n9 20\n",
        b"7 30 10\r\n\r\n9 20\r\n",
        b"7\t30  10 \n \t\n9 20",
    ],
    ids=["byte order", "windows", "tabs"],
)
def test_what_editors_leave_in_a_file_is_no_part_of_it(tmp_path, content):
    data = load(tmp_path, content)
    assert list(data.user_ids) == ["7", "9"] and list(data.catalog.ids) == ["10", "20", "30"]
    assert data.users.tolist() == [0, 1, 0] and data.items.tolist() == [2, 1, 0]


def test_names_of_any_script_are_users(tmp_path):
    assert list(load(tmp_path, "Zoë 1 2\n李 2 1\n".encode()).user_ids) == ["Zoë", "李"]


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
def test_other_encodings_are_refused_with_line_and_byte(tmp_path, before):
    content = before + b"7 30 10\n" + "Zoë 20\n".encode("latin-1")
    offset = content.index(b"\xeb")
    with pytest.raises(DataError, match=rf"sequences\.txt, line 2: expected UTF-8; got the byte 0xeb at {offset}"):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("item_attributes.json", '{"5": "abc"}', "expected a list of names or numbers; got 'abc' for item 5"),
        ("item_attributes.json", '{"5": null}', "expected a list of names or numbers; got None for item 5"),
        ("item_attributes.json", '{"5": [["a"]]}', r"expected a list of names or numbers; got \[\['a'\]\] for item 5"),
        ("item_attributes.json", "[1]", "expected an object with items as keys; got a list"),
        ("item_titles.json", '["a"]', "expected an object with items as keys; got a list"),
    ],
)
def test_attributes_and_titles_of_another_form_are_refused(tmp_path, name, content, message):
    """The letters of a text were its item's attributes."""
    (tmp_path / "sequences.txt").write_text("1 5 6\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        load_sequences(tmp_path)


@pytest.mark.parametrize("index", [-4, -3, 2, 3])
def test_an_overlay_has_no_entries_outside_it(index):
    with pytest.raises(IndexError, match=f"got {index}"):
        Overlaid(["a", "b"], {1: "B"})[index]
    assert Overlaid(["a", "b"], {1: "B"})[-2] == "a"
