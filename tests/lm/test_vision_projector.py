"""Projectors: where soft tokens start, that they learn, and that what is saved comes back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec_fast.lm.projector import Projector, Standardizer


class Fixed:
    """The attributes of an encoder that a projector reads."""

    name, digest = "fixed", "ab"

    def __init__(self, tokens: int = 2, width: int = 6, settings: dict[str, object] | None = None) -> None:
        self.tokens, self.width, self.settings = tokens, width, settings or {"sizes": (64, 48)}

    def encode(self, images: Iterable[object], **options: object) -> torch.Tensor:
        return torch.zeros(len(list(images)), self.tokens, self.width)


def token_embeddings(scale: float = 0.1, vocabulary: int = 500, dim: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(dim, generator=generator) * scale
    return mean + scale * torch.randn(vocabulary, dim, generator=generator)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.integers(2, 40))
def test_standardised_features_have_mean_zero_and_deviation_one(scale: float, shift: float, count: int) -> None:
    features = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(count)) * scale + shift
    features[:, 0, 0] = shift
    standardizer = Standardizer(2, 3).fit(features)
    result = standardizer(features)
    tolerance = 1e-3 + 1e-5 * abs(shift) / scale
    assert result.mean(0).abs().max() < tolerance
    assert torch.allclose(result.std(0, correction=0).flatten()[1:], torch.ones(5), atol=2 * tolerance)
    assert result[:, 0, 0].abs().max() <= 1e-4 * (1 + abs(shift))
    assert torch.equal(standardizer(features[3:4]), result[3:4])


@pytest.mark.parametrize("soft_tokens", [1, 5, "each"])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_soft_tokens_start_where_token_embeddings_are(soft_tokens: int | str, scale: float) -> None:
    embeddings = token_embeddings(scale)
    projector = Projector.for_encoder(Fixed(), embeddings, soft_tokens=soft_tokens, hidden=256)
    # Features as they are: of very different scales, and correlated.
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(400, 2, 4, generator=generator) @ torch.randn(4, 6, generator=generator)
    features = features * torch.logspace(-3, 3, 6) + 5
    projector.standardizer.fit(features)
    with torch.no_grad():
        tokens = projector(features)
    assert tokens.shape == (400, 2 if soft_tokens == "each" else soft_tokens, 24)
    assert (tokens.mean((0, 1)) - embeddings.mean(0)).square().mean().sqrt() < 0.3 * scale
    spread = (tokens - embeddings.mean(0)).square().mean().sqrt()
    expected = (embeddings - embeddings.mean(0)).square().mean().sqrt()
    assert 0.5 * expected < spread < 2 * expected


def test_an_images_soft_tokens_do_not_depend_on_its_batch_beyond_rounding() -> None:
    projector = Projector(2, 6, 24, soft_tokens=3)
    features = torch.randn(7, 2, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([projector(features[row : row + 1]) for row in range(7)])
        assert torch.allclose(projector(features), alone, atol=1e-6)
        assert projector(features[:0]).shape == (0, 3, 24)


def test_construction_draws_from_its_own_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, third = (Projector(2, 6, 24, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.first.weight, second.first.weight)
    assert not torch.equal(first.first.weight, third.first.weight)


def test_it_learns() -> None:
    projector = Projector.for_encoder(Fixed(), token_embeddings(), soft_tokens=2, hidden=32)
    features = torch.randn(64, 2, 6, generator=torch.Generator().manual_seed(0))
    target = features.sum((1, 2))
    optimizer = torch.optim.Adam(projector.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        loss = (projector(features).mean((1, 2)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("soft_tokens", [3, "each"])
def test_what_is_saved_comes_back(soft_tokens: int | str, tmp_path: Path) -> None:
    projector = Projector.for_encoder(Fixed(), token_embeddings(), soft_tokens=soft_tokens, hidden=16, seed=4)
    features = torch.randn(9, 2, 6, generator=torch.Generator().manual_seed(0))
    projector.standardizer.fit(features)
    for _ in range(2):
        projector.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "projector.safetensors"]
    loaded = Projector.load(tmp_path / "saved", Fixed())
    with torch.no_grad():
        assert torch.equal(loaded(features), projector(features))
    assert loaded.encoder == json.loads(json.dumps(projector.encoder))
    for other, word in ((Fixed(settings={"sizes": (64,)}), r"settings\.sizes"), (Fixed(width=7), "width")):
        with pytest.raises(ValueError, match=f"encoder: expected {word} .*, which the projector was made for; got"):
            Projector.load(tmp_path / "saved", other)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Projector.load(tmp_path)
    projector = Projector(2, 6, 24)
    projector.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"format": "other"}, "expected 'reasonrec-fast projector 1'"),
        ({"hidden": 3}, "expected tensors"),
        ({"extra": 3}, r"in config\.json"),
        ({"encoder": 3}, "expected an encoder's identity"),
        ({"hidden": 0}, "hidden: expected a whole number"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            Projector.load(tmp_path)
    projector.save(tmp_path)
    (tmp_path / "projector.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"projector\.safetensors: expected safetensors"):
        Projector.load(tmp_path)


def test_inputs_that_make_no_sense_are_refused() -> None:
    projector = Projector(2, 6, 24)
    with pytest.raises(ValueError, match=r"features: expected \[B, 2, 6\]; got \[2, 6\]"):
        projector(torch.zeros(2, 6))
    features = torch.zeros(3, 2, 6)
    features[1, 0, 0] = torch.nan
    for refuse in (projector, projector.standardizer.fit):
        with pytest.raises(ValueError, match="features: expected finite values; got others in row 1"):
            refuse(features)
    with pytest.raises(ValueError, match="expected at least one image; got none"):
        projector.standardizer.fit(features[:0])
    with pytest.raises(ValueError, match=r"embeddings: expected \[V, 24\]; got \[5, 23\]"):
        projector.match_embeddings(torch.zeros(5, 23))
    for name, value in (("tokens", 0), ("hidden", 1.5), ("soft_tokens", "all"), ("soft_tokens", True)):
        arguments = {"tokens": 2, "width": 6, "embedding_dim": 24, name: value}
        with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least 1"):
            Projector(**arguments)  # type: ignore[arg-type]


def test_soft_tokens_become_segments_with_a_key_of_their_content() -> None:
    pytest.importorskip("reasonrec_fast.lm.inputs")
    from reasonrec_fast.lm.vision import image_segments

    projector = Projector(2, 6, 24, soft_tokens=3)
    features = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0))
    features[3] = features[1]
    soft_tokens = projector(features)
    segments = image_segments(soft_tokens)
    assert all(torch.equal(segment.values, values) for segment, values in zip(segments, soft_tokens, strict=True))
    assert segments[1].key == segments[3].key and len({segment.key for segment in segments}) == 3
    assert image_segments(soft_tokens.to(torch.bfloat16))[0].key != segments[0].key
    segments[0].values.sum().backward()
    assert projector.first.weight.grad is not None and projector.first.weight.grad.any()
    with pytest.raises(ValueError, match=r"soft_tokens: expected \[B, n, D\]; got \[3, 24\]"):
        image_segments(soft_tokens[0])
