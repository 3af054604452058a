"""``python -m benchmarks.vision FOLDER``: images per second of an encoder and of its cache, and the accuracy of
predictions from its features.

The folder holds ``train.csv`` and ``test.csv`` with the columns ``image`` (a path in the folder) and ``mos`` (a score),
as BIQ2021 does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import pandas
import torch
import typer
from scipy.stats import rankdata, spearmanr

from reasonrec_fast.data.images import read_images
from reasonrec_fast.files import write_json
from reasonrec_fast.lm.vision import DEFAULT_ENCODER, CachedEncoder, Standardizer, load_image_encoder
from reasonrec_fast.models.classical.kernel_ridge import Kernel, KernelRidge


def main(
    folder: Annotated[Path, typer.Argument(help="of train.csv, test.csv and the images")],
    cache: Annotated[Path, typer.Option(help="where features are kept, and read from if they are there")],
    encoder: Annotated[str, typer.Option(help="as load_image_encoder takes it")] = DEFAULT_ENCODER,
    sizes: Annotated[str | None, typer.Option(help="of EfficientNet-Lite, such as 512,256")] = None,
    timed: Annotated[int, typer.Option(help="images whose encoding is timed")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="where to write the figures")] = None,
) -> None:
    """Encode all images once, time it, and predict the test scores by ridge and by kernel ridge regression."""
    torch.set_num_threads(1)
    tables = {part: pandas.read_csv(folder / f"{part}.csv") for part in ("train", "test")}
    paths = [*tables["train"]["image"], *tables["test"]["image"]]
    model = load_image_encoder(encoder, sizes=None if sizes is None else tuple(map(int, sizes.split(","))))
    cached = CachedEncoder(model, cache)
    figures: dict[str, object] = {"encoder": encoder, "settings": dict(model.settings), "images": len(paths)}

    decoded = list(read_images(paths[:timed], folder=folder))
    figures["decoded_per_s"] = _per_second(timed, lambda: list(read_images(paths[:timed], folder=folder)))
    figures["encoded_per_s"] = _per_second(timed, lambda: model.encode(decoded))
    known = len(cached.cache)
    begin = time.perf_counter()
    features = cached.encode(paths, folder=folder)
    figures["all_s"], figures["all_computed"] = time.perf_counter() - begin, len(cached.cache) - known
    figures["cached_from_files_per_s"] = _per_second(timed, lambda: cached.encode(paths[:timed], folder=folder))
    keys = list(cached.cache)
    figures["cached_by_key_per_s"] = _per_second(len(keys), lambda: cached.cache.get(keys))

    count = len(tables["train"])
    scores, truth = (tables[part]["mos"].to_numpy(float) for part in ("train", "test"))
    standardized = Standardizer(model.tokens, model.width).fit(features[:count])(features).double().numpy()
    targets = np.stack([scores, (rankdata(scores) - 0.5) / count], axis=1)
    for name, columns in {**{str(token): [token] for token in range(model.tokens)}, "all": range(model.tokens)}.items():
        x = standardized[:, list(columns)].reshape(len(paths), -1)
        for kernel in get_args(Kernel):
            for column, target in enumerate(("raw", "percentiles")):
                predicted = KernelRidge.fit(x[:count], targets[:, column], kernel).predict(x[count:])
                srcc = spearmanr(predicted, truth).statistic
                figures[f"srcc_token_{name}_{kernel}_{target}"] = float(srcc)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    if json_file is not None:
        write_json(json_file, figures)


def _per_second(count: int, work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(3):
        begin = time.process_time()  # of the one thread: other processes of the machine do not count
        work()
        times.append(time.process_time() - begin)
    return count / float(np.median(times))


if __name__ == "__main__":
    typer.run(main)
