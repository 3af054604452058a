"""Generation over a shared prefix against transformers' ``generate``, with SmolLM2-135M's weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch.nn import functional

from reasonrec_fast.benchmarking.case import OURS, Case
from reasonrec_fast.benchmarking.measure import Run

SEQUENCES, NEW_TOKENS = 8, 64
_Texts = tuple[list[int], list[list[int]]]


@cache
def _model(dtype: torch.dtype, device: str, tiny: bool) -> Any:
    """A model without stop tokens, so that every sequence has the same length."""
    from reasonrec_fast.lm.loading import load_language_model

    if tiny:
        from transformers import LlamaConfig, LlamaForCausalLM

        from reasonrec_fast.benchmarking.stored import decoder_shape

        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(LlamaConfig(**decoder_shape(tiny=True)))
        model.to(device, dtype).eval()
    else:
        model, _ = load_language_model(dtype=dtype, device=device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _texts(vocabulary: int) -> _Texts:
    """A stored prefix of 232 tokens and eight candidates of 24, about a user of MovieLens."""
    from reasonrec_fast.benchmarking.stored import stored_work

    group: Any = stored_work("slates", groups=1).groups[0]  # of token ids alone
    prefix, prompts = group
    return [token % vocabulary for token in prefix], [[t % vocabulary for t in p] for p in prompts[:SEQUENCES]]


def _ours(model: Any, texts: _Texts, samples: bool, new_tokens: int) -> torch.Tensor:
    from reasonrec_fast.lm.generate import TextGenerator
    from reasonrec_fast.lm.sampling import SamplingParams

    prefix, prompts = texts
    if samples:
        groups: Any = [([], [prefix + prompts[0]])]
        params = SamplingParams(num_samples=SEQUENCES, max_new_tokens=new_tokens)
    else:
        groups, params = [texts], SamplingParams(temperature=0, max_new_tokens=new_tokens)
    results = TextGenerator(model).generate(groups, params)
    return torch.tensor([result.token_ids for request in results for result in request])


@torch.inference_mode()
def _transformers(model: Any, texts: _Texts, samples: bool, new_tokens: int) -> torch.Tensor:
    """Full texts, left-padded; several samples by ``num_return_sequences``."""
    prefix, prompts = texts
    rows = [prefix + prompt for prompt in (prompts[:1] if samples else prompts)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    options = {"num_return_sequences": SEQUENCES} if samples else {}
    return _new_tokens(model, ids, samples, new_tokens, attention_mask=mask, **options)


@torch.inference_mode()
def _transformers_prefix_cache(model: Any, texts: _Texts, samples: bool, new_tokens: int) -> torch.Tensor:
    """The prefix (for samples, the prompt without its last token) is computed once and its cache repeated; prompts must
    have equal lengths."""
    from transformers import DynamicCache

    prefix, prompts = texts
    if samples:
        whole = prefix + prompts[0]
        prefix, prompts = whole[:-1], [whole[-1:]] * SEQUENCES
    past = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([prefix], device=model.device), past_key_values=past, use_cache=True, logits_to_keep=1)
    past.batch_repeat_interleave(len(prompts))
    ids = torch.tensor([prefix + prompt for prompt in prompts], device=model.device)
    mask = torch.ones_like(ids)
    return _new_tokens(model, ids, samples, new_tokens, attention_mask=mask, past_key_values=past)


def _new_tokens(model: Any, ids: torch.Tensor, samples: bool, new_tokens: int, **options: Any) -> torch.Tensor:
    if samples:
        options |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    tokens = model.generate(ids, do_sample=samples, max_new_tokens=new_tokens, **options)
    return tokens[:, ids.shape[1] :].cpu()


@torch.inference_mode()
def _products(model: Any, steps: int) -> None:
    """Only the matrix products of layers and LM head with eight rows, ``steps`` times."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    weights = [module.weight for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in names]
    rows = {w.shape[1]: torch.ones(SEQUENCES, w.shape[1], dtype=w.dtype, device=w.device) for w in weights}
    for _ in range(steps):
        for weight in weights:
            functional.linear(rows[weight.shape[1]], weight)


def _case(name: str, samples: bool, dtype: torch.dtype, device: str = "cpu", tiny: bool = False) -> Case:
    model = _model(dtype, device, tiny)
    texts, new_tokens = _texts(model.config.vocab_size), 8 if tiny else NEW_TOKENS
    contenders: dict[str, Run] = {
        OURS: partial(_ours, model, texts, samples, new_tokens),
        "transformers": partial(_transformers, model, texts, samples, new_tokens),
        "transformers_prefix_cache": partial(_transformers_prefix_cache, model, texts, samples, new_tokens),
    }

    @torch.inference_mode()
    def check(contender: str, tokens: torch.Tensor) -> None:
        """Greedy tokens must be the most likely, within the dtype's rounding; the mean surprisal of samples must be
        near the model's entropy."""
        prefix, prompts = texts
        rows = [prefix + prompt for prompt in ([prompts[0]] * SEQUENCES if samples else prompts)]
        if tokens.shape != (SEQUENCES, new_tokens):
            raise AssertionError(f"{contender}: expected {[SEQUENCES, new_tokens]} tokens; got {list(tokens.shape)}")
        for row, new in zip(rows, tokens, strict=True):
            ids = torch.tensor([row + new.tolist()], device=device)
            logits = model(input_ids=ids, logits_to_keep=new_tokens + 1).logits[0, :-1].float().cpu()
            logprobs = logits.log_softmax(-1)
            of_tokens = logprobs.gather(1, new[:, None])[:, 0]
            if samples:
                gap = (of_tokens - (logprobs.exp() * logprobs).sum(-1)).mean().abs()
            else:
                gap = (logprobs.max(-1).values - of_tokens).max()
            limit = 1.5 if samples else 0.5 if dtype == torch.bfloat16 else 1e-3
            if not gap <= limit:
                raise AssertionError(f"{contender}: tokens are off by {float(gap):.3f} nats")

    return Case(
        "generate",
        name,
        dtype,
        contenders,
        floor=partial(_products, model, new_tokens),
        check=check,
        seconds=60.0,
        device=device,
        read_back=frozenset(contenders),
    )


CASES: dict[str, Callable[..., Case]] = {
    "generate-8-prompts-bf16": partial(_case, "generate-8-prompts-bf16", False, torch.bfloat16),
    "generate-8-samples-bf16": partial(_case, "generate-8-samples-bf16", True, torch.bfloat16),
    "generate-8-prompts-fp32": partial(_case, "generate-8-prompts-fp32", False, torch.float32),
    "generate-8-samples-fp32": partial(_case, "generate-8-samples-fp32", True, torch.float32),
}
