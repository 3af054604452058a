"""Reading files while Arrow's threads run."""

import subprocess
import sys
import time
import weakref

import pytest

from reasonrec_fast.data import DataError, delimited, reading
from reasonrec_fast.data.delimited import _WholeLineEnds


def test_no_thread_of_arrow_holds_a_file_that_was_read(tmp_path, monkeypatch):
    """One that let go of it while Python ended aborted the command: exit status 134 after an error in one line."""
    (tmp_path / "a.csv").write_text("user,item\n" + "a,x\n" * 100)
    files = []

    class Watched(_WholeLineEnds):
        def __init__(self, file):
            super().__init__(file)
            files.append(weakref.ref(self))

    monkeypatch.setattr(delimited, "_WholeLineEnds", Watched)
    for _ in range(100):
        reading.read_table(tmp_path / "a.csv")
        assert files.pop()() is None


def test_files_that_do_not_fit_are_let_go_of_as_well(tmp_path):
    (tmp_path / "a.csv").write_text("user,item\n" + "a,x\n" * 100 + "a,x,y\n")
    begin = time.perf_counter()
    for _ in range(5):
        with pytest.raises(DataError, match="row 101: expected 2 fields"):
            reading.read_table(tmp_path / "a.csv")
    assert time.perf_counter() - begin < 2.5, "each waits for a thread that has gone"


def test_a_user_without_a_home_has_no_cache():
    code = (
        "import pathlib, reasonrec_fast.files as files\n"
        "def nobody(path): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.expanduser = nobody\n"
        "try: files.cache_folder()\n"
        "except FileNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "/usr/bin"})
    assert done.stdout.strip() == "the user has no home; set HOME or XDG_CACHE_HOME", done.stderr
