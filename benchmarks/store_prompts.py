"""``python -m benchmarks.store_prompts``: stores real MovieLens prompts as token ids, for machines without the data.

Writes ``prompts.json`` and ``smollm2-135m.json`` beside ``reasonrec_fast/benchmarking/stored.py``, which reads them.
Needs the packages of the demo (``make demo``).
"""

from __future__ import annotations

import json
from typing import Any

from reasonrec_fast.benchmarking import engine_prompts
from reasonrec_fast.benchmarking.stored import FOLDER
from reasonrec_fast.files import atomic_write, write_json
from reasonrec_fast.lm.layout import TokenGroup

SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings",
)  # fmt: skip
LONG_PREFIX = 2000


def prompts() -> dict[str, list[TokenGroup]]:
    """Groups of token ids by name (see ``stored.stored_work``)."""
    slates = engine_prompts.slates_of_users(4, 32, prefix_tokens=232, suffix_tokens=24).groups
    texts = engine_prompts.requests_in_arrival_order(32, prefix_tokens=320).groups
    # Concatenated histories of several users: no single one in MovieLens is as long.
    history = [token for prefix, _ in texts for token in prefix]
    long: list[TokenGroup] = [
        (history[index * LONG_PREFIX : (index + 1) * LONG_PREFIX], slates[index][1][:6]) for index in range(2)
    ]
    return {"slates": slates, "texts": texts[:16], "long": long}


def main() -> None:
    """Write both files."""
    rows = []
    for name, groups in prompts().items():
        lines = ",\n".join(
            json.dumps([list(map(int, prefix)), [list(map(int, s)) for s in suffixes]]) for prefix, suffixes in groups
        )
        rows.append(f'"{name}": [\n{lines}\n]')
    with atomic_write(FOLDER / "prompts.json") as temporary:
        temporary.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    model, _, _ = engine_prompts.movielens_model()
    config = model.peft.get_base_model().config
    decoder: dict[str, Any] = {name: getattr(config, name) for name in SHAPE}
    heads = {"exits": list(model.ranker.model.exits), "num_features": model.ranker.model.heads[0].units.in_features}
    write_json(FOLDER / "smollm2-135m.json", {"decoder": decoder, "heads": heads})


if __name__ == "__main__":
    main()
