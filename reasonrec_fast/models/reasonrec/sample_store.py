"""Samples of a language model by the key of what they were drawn for, in memory and in a file."""

from __future__ import annotations

import json
from pathlib import Path


class SampleStore:
    """A file to which samples are added as soon as they are drawn, so that an interrupted run goes on.

    Args:
        path: of JSON lines; None for memory alone. A last line that was written in part is dropped.

    Raises:
        ValueError: another line that is none of this store (it is named).

    >>> store = SampleStore()
    >>> store.add("key", ["a text"])
    >>> "key" in store, store["key"]
    (True, ['a text'])
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._texts: dict[str, list[str]] = {}
        if self.path is None or not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                key, texts = json.loads(line)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: expected a key and its texts; got {line!r:.80}"
                ) from error
            self._texts[key] = texts
        if len(whole) < len(content):
            self.path.write_bytes(whole)

    def __contains__(self, key: str) -> bool:
        return key in self._texts

    def __getitem__(self, key: str) -> list[str]:
        return list(self._texts[key])

    def add(self, key: str, texts: list[str]) -> None:
        """Keep the texts of a key."""
        self._texts[key] = list(texts)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, texts]) + "\n")
