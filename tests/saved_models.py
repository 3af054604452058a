"""Folders of saved models that tests damage."""

import json


def forget_digests(folder):
    """As of a model that was saved before digests of its files were, so that its parts are read whatever they hold."""
    stored = json.loads((folder / "config.json").read_text())
    stored.pop("files", None)
    (folder / "config.json").write_text(json.dumps(stored))
