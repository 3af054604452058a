"""A small shop as files: 3,000 events with string identifiers and ISO times, items with category, brand and price."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

USERS, ITEMS, EVENTS = 150, 300, 3_000
CATEGORIES = ("Shoes", "Bags", "Hats", "Toys", "Garden", "Kitchen")
BRANDS = ("Acme", "Bolt", "Cara", "Dune")
KINDS = ("red", "blue", "small", "large", "light", "warm", "plain", "fine")


def write_shop(folder: Path, seed: int = 0) -> None:
    """``events.csv``, ``items.csv``, ``purchases.csv``, ``requests.csv`` and ``users.csv``.

    A customer likes two of the categories, mostly; 3 of 4 of their events are in these.
    """
    generator = np.random.default_rng(seed)
    category = generator.integers(0, len(CATEGORIES), ITEMS)
    price = np.round(np.exp(generator.normal(3, 0.8, ITEMS)), 2)
    words = generator.choice(KINDS, (ITEMS, 2))
    items = pd.DataFrame(
        {
            "id": [f"{number * 37:08d}" for number in range(ITEMS)],
            "title": [
                f"{a} {b} {CATEGORIES[c][:-1].lower()} {n}"
                for n, ((a, b), c) in enumerate(zip(words, category, strict=True))
            ],
            "category": [CATEGORIES[c] for c in category],
            "brand": generator.choice(BRANDS, ITEMS),
            "price": [f"{value:.2f}" for value in price],
            "image": [f"https://img.example/{number}.jpg" for number in range(ITEMS)],
        }
    )
    liked = np.argsort(generator.random((USERS, len(CATEGORIES))), axis=1)[:, :2]
    users = generator.integers(0, USERS, EVENTS)
    wanted = liked[users, generator.integers(0, 2, EVENTS)]
    any_item = generator.integers(0, ITEMS, EVENTS)
    of_category = [np.flatnonzero(category == c) for c in range(len(CATEGORIES))]
    own = np.array([generator.choice(of_category[c]) for c in wanted])
    chosen = np.where(generator.random(EVENTS) < 0.75, own, any_item)
    match = (category[chosen] == liked[users, 0]) | (category[chosen] == liked[users, 1])
    stars = np.clip(np.round(np.where(match, 4.4, 2.6) + generator.normal(0, 0.9, EVENTS)), 1, 5).astype(int)
    moments = pd.Timestamp("2025-01-01") + pd.to_timedelta(
        np.sort(generator.integers(0, 180 * 86_400, EVENTS)), unit="s"
    )
    events = pd.DataFrame(
        {
            "customer": [f"C-{user:05d}" for user in users],
            "sku": items["id"].to_numpy()[chosen],
            "time": moments.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "stars": stars,
        }
    )
    events.to_csv(folder / "events.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    events[stars >= 4].drop(columns="stars").to_csv(folder / "purchases.csv", index=False)
    request_users = generator.integers(0, USERS, 20)
    requests = pd.DataFrame(
        {
            "order": [f"R{number}" for number in range(20)],
            "customer": [f"C-{user:05d}" for user in request_users],
            "sku": items["id"].to_numpy()[generator.integers(0, ITEMS, 20)],
            "time": ["2025-07-01T09:00:00+02:00"] * 20,
        }
    )
    requests.to_csv(folder / "requests.csv", index=False)
    pd.DataFrame({"customer": [f"C-{user:05d}" for user in range(5)], "mail": ["a", "b", "c", "d", "e"]}).to_csv(
        folder / "users.csv", index=False
    )
