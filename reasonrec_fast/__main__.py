"""``python -m reasonrec_fast`` is the command ``reasonrec-fast``."""

from reasonrec_fast.cli.main import app

if __name__ == "__main__":
    app(prog_name="reasonrec-fast")
