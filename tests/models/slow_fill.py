"""What processes of ``test_cases_loading.py`` do; they import this alone, as transformers takes seconds of each."""

import os
import time
from pathlib import Path

from reasonrec_fast.files import create_folder_once


def fill_slowly(folder: Path, seconds: float) -> None:
    """Make a folder of two files, with some seconds between them."""

    def fill(temporary: Path) -> None:
        (temporary / "a").write_text("a")
        (folder.parent / f"filled-by-{os.getpid()}").write_text("")
        time.sleep(seconds)
        (temporary / "b").write_text("b")

    create_folder_once(folder, fill)
