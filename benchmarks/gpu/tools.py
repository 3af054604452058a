"""Commands with a time limit and a common log, and atomic file writes.

Nothing here imports torch or the package, since both are under test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOG_BYTES = 2 * 2**20
"""Bytes of one command's output in the log; of a longer output the beginning and the end are logged."""
LOG_LIMIT = 14 * 2**20
"""Size of the log in bytes; rented machines may limit the size of files."""


@dataclass(frozen=True)
class Done:
    """The result of a command.

    Attributes:
        status: exit status; negative for a signal; None if it could not be started.
        output: stdout and stderr, interleaved.
        seconds: duration.
        stopped: why it was stopped; None if it ended by itself.
    """

    status: int | None
    output: str
    seconds: float
    stopped: str | None = None

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}"


class Log:
    """A log file with a size limit; any number of threads may write.

    Args:
        path: truncated at the start.
    """

    def __init__(self, path: Path) -> None:
        self._file, self._lock = path.open("w", encoding="utf-8", errors="replace"), threading.Lock()
        self._left = LOG_LIMIT

    def write(self, text: str) -> None:
        with self._lock:
            if self._left <= 0:
                return
            self._left -= len(text)
            self._file.write(text if self._left > 0 else "\n... the log is full ...\n")
            self._file.flush()


class Shell:
    """Runs commands at the root of the repository.

    Args:
        log: for their output.
        environment: variables in addition to those of this process.
    """

    def __init__(self, log: Log, environment: Mapping[str, str] | None = None) -> None:
        self.log, self._environment = log, dict(environment or {})
        self._running: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        """Kill all running commands."""
        for process in list(self._running):
            _kill(process)

    def run(
        self,
        command: Sequence[Any],
        *,
        seconds: float,
        environment: Mapping[str, str] | None = None,
        watch: Callable[[], str | None] = lambda: None,
    ) -> Done:
        """Run a command and wait for it; if it is stopped its whole process group is killed.

        Args:
            command: program and arguments.
            seconds: time limit.
            environment: further variables for this command.
            watch: called ten times per second; a returned reason stops the command.
        """
        words, begin = [str(word) for word in command], time.monotonic()
        environment = {**os.environ, **self._environment, **(environment or {})}
        try:
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as problem:
            self.log.write(f"\n$ {' '.join(words)}\n{problem}\n")
            return Done(None, str(problem), 0.0, stopped=f"it does not start: {problem}")
        self._running.add(process)
        collected: list[bytes] = []
        reader = threading.Thread(target=self._read, args=(process, " ".join(words), collected), daemon=True)
        reader.start()
        stopped = None
        try:
            while process.poll() is None and stopped is None:
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    is_late = time.monotonic() - begin > seconds
                    stopped = f"stopped after {seconds:.0f} s" if is_late else watch()
        finally:
            _kill(process)
            self._running.discard(process)
        reader.join(5.0)  # a process outside the group may still hold the pipe open
        watch()
        output = b"".join(collected).decode("utf-8", "replace")
        elapsed = time.monotonic() - begin
        self.log.write(f"\n$ ended: {' '.join(words)[:200]}: status {process.returncode}, {elapsed:.1f} s, {stopped}\n")
        return Done(process.returncode, output, elapsed, stopped)

    def _read(self, process: subprocess.Popen[bytes], title: str, collected: list[bytes]) -> None:
        assert process.stdout is not None
        logged, left_out, tail = 0, 0, deque[str](maxlen=400)
        self.log.write(f"\n$ {title}\n")
        for line in iter(process.stdout.readline, b""):
            collected.append(line)
            text = line.decode("utf-8", "replace")
            if logged < LOG_BYTES // 2:
                self.log.write(text)
                logged += len(line)
                continue
            left_out += 1
            tail.append(text)
        if left_out:
            rest = "".join(tail)[-LOG_BYTES // 2 :]
            self.log.write(f"... {max(left_out - len(tail), 0)} lines left out ...\n{rest}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group, which includes the process's own children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
