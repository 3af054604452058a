"""What these tests share with ``tests/early_exit``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "early_exit"))
