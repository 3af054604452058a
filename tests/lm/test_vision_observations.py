"""The cache of features: right or absent after kills, truncation, full disks and repeated writes."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reasonrec_fast.data.images import ImageSource, read_images
from reasonrec_fast.lm import observations
from reasonrec_fast.lm.image_encoder import ImageEncoder
from reasonrec_fast.lm.observations import CachedEncoder, ObservationCache

KILLS = int(os.environ.get("OBSERVATION_KILLS", "5"))
FORK = multiprocessing.get_context("fork")


class Moments:
    """Features that are simple moments of the pixels; it counts what it computes."""

    name, digest, tokens = "moments", "0" * 64, 2

    def __init__(self, width: int = 5, settings: dict[str, object] | None = None) -> None:
        self.width, self.settings = width, settings or {"powers": (1, 2)}
        self.computed: list[bytes] = []

    def encode(self, images: Iterable[ImageSource], **options: object) -> torch.Tensor:
        features = []
        for image in read_images(images, **options):  # type: ignore[arg-type]
            self.computed.append(image.key)
            pixels = torch.from_numpy(image.pixels.astype(np.float32))
            features.append(torch.stack([pixels.mean() ** (1 + i / self.width) for i in range(2 * self.width)]))
        return torch.stack(features).view(-1, 2, self.width) if features else torch.zeros(0, 2, self.width)


def photos(count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (4, 3 + i % 3, 3), dtype=np.uint8) for i in range(count)]


def key_of(image_id: int) -> bytes:
    return image_id.to_bytes(4, "big") + bytes(28)


def features_of(image_ids: Sequence[int], encoder: Moments) -> torch.Tensor:
    shape = encoder.tokens, encoder.width
    values = [np.random.default_rng(image_id).standard_normal(shape, dtype=np.float32) for image_id in image_ids]
    return torch.from_numpy(np.stack(values))


def assert_right(cache: ObservationCache, image_ids: Sequence[int], encoder: Moments) -> list[int]:
    """What is cached is right; returns what is not."""
    features, missing = cache.get([key_of(image_id) for image_id in image_ids])
    cached = [row for row in range(len(image_ids)) if row not in set(missing)]
    if cached:
        assert torch.equal(features[cached], features_of([image_ids[row] for row in cached], encoder))
    return [image_ids[row] for row in missing]


def test_cached_features_are_those_computed_bit_by_bit(tmp_path: Path) -> None:
    encoder, images = Moments(), photos(20)
    expected = Moments().encode(images)
    cached = CachedEncoder(encoder, tmp_path / "a" / "b", batch_size=7)
    assert isinstance(cached, ImageEncoder)
    assert torch.equal(cached.encode(images), expected)
    assert len(encoder.computed) == 20 == len(cached.cache)
    assert torch.equal(cached.encode(images[::-1]), expected.flip(0))
    assert torch.equal(CachedEncoder(encoder, tmp_path / "a" / "b").encode(images), expected)
    assert len(encoder.computed) == 20
    keys = [image.key for image in read_images(images)]
    values, missing = cached.cache.get([keys[3], bytes(32), keys[1]])
    assert missing == [1] and torch.equal(values[[0, 2]], expected[[3, 1]]) and not values[1].any()
    assert cached.encode([]).shape == (0, 2, 5)


def test_an_image_that_comes_twice_is_computed_once(tmp_path: Path) -> None:
    encoder, (first, second) = Moments(), photos(2)
    cached = CachedEncoder(encoder, tmp_path)
    assert torch.equal(cached.encode([first, second, first]), Moments().encode([first, second, first]))
    assert len(encoder.computed) == 2


def test_the_bound_on_pixels_is_the_callers(tmp_path: Path) -> None:
    cached, image = CachedEncoder(Moments(), tmp_path), np.zeros((1, 50_000_001), dtype=np.uint8)
    assert cached.encode([image], max_pixels=60_000_000).shape == (1, 2, 5)
    with pytest.raises(ValueError, match="expected at most 50000000 pixels; got 50000001 x 1"):
        cached.encode([image])


def test_a_broken_image_is_named_and_what_came_before_is_kept(tmp_path: Path) -> None:
    encoder = Moments()
    cached = CachedEncoder(encoder, tmp_path, batch_size=2)
    with pytest.raises(ValueError, match=r"images\[4\]: image of 6 bytes"):
        cached.encode([*photos(4), b"broken"])
    assert len(CachedEncoder(encoder, tmp_path).cache) == 4


@pytest.mark.parametrize("change", ["name", "digest", "settings", "width"])
def test_a_cache_of_another_encoder_is_refused(change: str, tmp_path: Path) -> None:
    CachedEncoder(Moments(), tmp_path).encode(photos(2))
    other = Moments(6 if change == "width" else 5)
    if change == "settings":
        other.settings = {"powers": (1, 3)}
    elif change != "width":
        setattr(other, change, "1" * 64)
    word = {"name": "encoder", "digest": "weights", "settings": r"settings\.powers"}.get(change, change)
    with pytest.raises(ValueError, match=f"expected a cache of {word} .*; it was made with .*a folder of its own"):
        CachedEncoder(other, tmp_path)
    assert len(ObservationCache(tmp_path, Moments())) == 2


def test_another_encoder_that_is_first_to_write_is_seen(tmp_path: Path) -> None:
    slow = CachedEncoder(Moments(settings={"powers": (1, 3)}), tmp_path)
    CachedEncoder(Moments(), tmp_path).encode(photos(2))
    with pytest.raises(ValueError, match=r"expected a cache of settings\.powers \[1, 3\]; it was made with \[1, 2\]"):
        slow.encode(photos(1))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected observations\.json beside"):
        ObservationCache(tmp_path / "a", Moments())
    (tmp_path / "observations.json").write_text("{}")
    with pytest.raises(ValueError, match="expected 'reasonrec-fast observations 1'"):
        ObservationCache(tmp_path, Moments())


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    cache = ObservationCache(tmp_path, Moments())
    with pytest.raises(ValueError, match=r"features: expected float32 \[1, 2, 5\]; got torch.float32 \[1, 5\]"):
        cache.put([bytes(32)], torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"keys\[1\]: expected 32 bytes; got 3 bytes"):
        cache.get([bytes(32), b"abc"])
    for bound in (-1, 1.5, True):
        with pytest.raises(ValueError, match="max_bytes: expected none or a whole number"):
            ObservationCache(tmp_path, Moments(), max_bytes=bound)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size: expected a whole number of at least 1; got 0"):
        CachedEncoder(Moments(), tmp_path, batch_size=0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["features.bin", "index.bin"]), st.floats(0, 1), st.booleans())
def test_a_file_that_is_cut_off_or_damaged_loses_records_and_gives_no_wrong_ones(
    tmp_path: Path, name: str, share: float, cut: bool
) -> None:
    folder = tmp_path / os.urandom(4).hex()
    encoder, image_ids = Moments(), list(range(12))
    opened = ObservationCache(folder, encoder)
    opened.put([key_of(image_id) for image_id in image_ids], features_of(image_ids, encoder))
    assert not assert_right(opened, image_ids, encoder)
    path = folder / name
    at = min(int(share * path.stat().st_size), path.stat().st_size - 1)
    if cut:
        os.truncate(path, at)
    else:
        content = bytearray(path.read_bytes())
        content[at] ^= 255
        path.write_bytes(content)
    for cache in (opened, ObservationCache(folder, encoder)):
        missing = assert_right(cache, image_ids, encoder)
        assert cut or len(missing) <= 1
    assert missing
    cache.put([key_of(image_id) for image_id in missing], features_of(missing, encoder))
    for reader in (opened, cache, ObservationCache(folder, encoder)):
        assert not assert_right(reader, image_ids, encoder)


def test_a_cache_that_is_deleted_and_begun_anew_is_seen(tmp_path: Path) -> None:
    encoder = Moments()
    cache = ObservationCache(tmp_path, encoder)
    cache.put([key_of(1), key_of(2)], features_of([1, 2], encoder))
    assert assert_right(cache, [1, 2], encoder) == []
    for path in tmp_path.iterdir():
        path.unlink()
    other = ObservationCache(tmp_path, encoder)
    other.put([key_of(2), key_of(3)], features_of([2, 3], encoder))
    missing = assert_right(cache, [1, 2, 3], encoder)  # of 2 and 3 too, where the file has the old one's inode
    assert 1 in missing
    cache.put([key_of(image_id) for image_id in missing], features_of(missing, encoder))
    assert assert_right(cache, [1, 2, 3], encoder) == [] == assert_right(other, [1, 2, 3], encoder)


@pytest.mark.parametrize("file", ["features.bin", "index.bin"])
def test_a_full_disk_costs_one_line_and_no_answer(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, images = Moments(), photos(12)
    cached = CachedEncoder(encoder, tmp_path, batch_size=3)
    cached.encode(images[:3])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.pwrite

    def half(descriptor: int, content: memoryview, at: int) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name != file:
            return real(descriptor, content, at)
        real(descriptor, content[: len(content) // 2], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "pwrite", half)
        assert torch.equal(cached.encode(images), Moments().encode(images))
        assert torch.equal(cached.encode(images), Moments().encode(images))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "computed and not kept" in lines[0] and "No space left" in lines[0]
    assert (tmp_path / file).read_bytes() == before[file]
    assert len(ObservationCache(tmp_path, encoder)) == 3
    assert torch.equal(cached.encode(images), Moments().encode(images))
    assert len(ObservationCache(tmp_path, encoder)) == 12


def test_a_folder_that_cannot_be_written_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*given: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "cache")

    monkeypatch.setattr(observations, "write_json", refuse)
    cached = CachedEncoder(Moments(), tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(cached.encode(photos(3)), Moments().encode(photos(3)))
    assert len(caplog.records) == 1 and "cannot be written" in caplog.records[0].getMessage()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        CachedEncoder(Moments(), tmp_path / "file" / "cache")


def test_a_bound_on_bytes_is_kept_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder, images = Moments(), photos(30)
    cached = CachedEncoder(encoder, tmp_path, max_bytes=5 * (40 + 40) + 79, batch_size=4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(cached.encode(images), Moments().encode(images))
    assert len(cached.cache) == 5
    assert sum((tmp_path / name).stat().st_size for name in ("features.bin", "index.bin")) == 400
    assert [record.getMessage().rpartition("since ")[2] for record in caplog.records] == ["it has reached 479 bytes"]
    assert len(encoder.computed) == 30 + 25


def test_threads_share_a_cache(tmp_path: Path) -> None:
    encoder, images = Moments(), photos(40)
    expected = Moments().encode(images)
    cached = CachedEncoder(encoder, tmp_path, batch_size=3)
    wrong: list[int] = []
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        order = np.random.default_rng(thread).permutation(len(images))
        start.wait()
        if not torch.equal(cached.encode([images[i] for i in order]), expected[order]):
            wrong.append(thread)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    again = ObservationCache(tmp_path, encoder)
    assert len(again) == 40
    assert (tmp_path / "index.bin").stat().st_size == 40 * 40  # none twice


def write(cache: ObservationCache, encoder: Moments, image_ids: Sequence[int], batch: int) -> None:
    for start in range(0, len(image_ids), batch):
        part = image_ids[start : start + batch]
        cache.put([key_of(image_id) for image_id in part], features_of(part, encoder))


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    encoder = Moments()
    opened = ObservationCache(tmp_path, encoder)  # before the forks, which inherit it
    orders = [list(range(0, 150)), list(range(149, -1, -1)), list(range(100, 250))]
    writers = [FORK.Process(target=write, args=(opened, encoder, order, 1 + i)) for i, order in enumerate(orders)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert_right(opened, list(range(250)), encoder)  # a reader meanwhile
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    for cache in (opened, ObservationCache(tmp_path, encoder)):
        assert not assert_right(cache, list(range(250)), encoder)
    assert (tmp_path / "index.bin").stat().st_size == 250 * 40  # none twice
    assert (tmp_path / "features.bin").stat().st_size == 250 * 40


def test_whoever_is_killed_leaves_whole_records(tmp_path: Path) -> None:
    """``OBSERVATION_KILLS=200`` for as many; records of 240 kB, so that most kills come while one is written."""
    encoder, generator = Moments(30_000), np.random.default_rng(KILLS)
    image_ids = list(range(200_000))
    records = 0
    for kill in range(KILLS):
        folder = tmp_path / str(kill // 10)  # ten deaths each, so that they come upon one another's remains
        before = ObservationCache(folder, encoder)
        start = len(before)
        writers = [
            FORK.Process(target=write, args=(before, encoder, image_ids[start + offset :], 3)) for offset in (0, 5)
        ]
        for writer in writers:
            writer.start()
        time.sleep(float(generator.uniform(0.005, 0.06)))
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
        after = ObservationCache(folder, encoder)
        known = sorted(int.from_bytes(key[:4], "big") for key in after)
        assert len(known) >= start
        assert assert_right(after, known, encoder) == []
        records += len(known) - start
    assert records > KILLS
