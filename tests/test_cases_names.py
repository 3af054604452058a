"""What can be imported from the package itself, and what that loads."""

import ast
import subprocess
import sys
from pathlib import Path

import reasonrec_fast
from reasonrec_fast.models import classical


def test_every_name_is_there_and_known_to_type_checkers():
    assert {"OptiRAG", "OptiRAGConfig", "EarlyExitRanker", "Interactions", "load_interactions", "split_by_time"} <= set(
        reasonrec_fast.__all__
    )
    assert set(classical.__all__) <= set(reasonrec_fast.__all__) <= set(dir(reasonrec_fast))
    assert len(set(reasonrec_fast.__all__)) == len(reasonrec_fast.__all__)
    namespace: dict = {}
    exec("from reasonrec_fast import *", namespace)
    assert set(reasonrec_fast.__all__) <= set(namespace)
    assert namespace["SASRec"] is classical.SASRec
    tree = ast.parse(Path(reasonrec_fast.__file__).read_text(encoding="utf-8"))
    imported = {
        name.asname or name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert set(reasonrec_fast.__all__) <= imported


def test_importing_the_package_loads_little():
    code = (
        "import sys, reasonrec_fast\n"
        "dir(reasonrec_fast)\n"
        "heavy = {'pandas', 'transformers', 'numba', 'sklearn', 'scipy', 'peft', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not hasattr(reasonrec_fast, 'nothing')\n"
        "from reasonrec_fast import Interactions\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
