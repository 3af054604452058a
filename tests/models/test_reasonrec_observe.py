"""What the agent observes of items beside their words: pictures, vectors of texts, thoughts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from early_exit.tiny import tiny_vlm
from reasonrec_shop import ITEMS, USERS, small_config, walks
from vlm_processors import processor

from reasonrec_fast.data import Catalog, DataError, split_by_time
from reasonrec_fast.lm import own_image_encoder, segments_of
from reasonrec_fast.lm.own_image_encoder import OwnImageEncoder
from reasonrec_fast.models.reasonrec import ReasonRec
from reasonrec_fast.models.reasonrec.agent import ResidualAgent, Slate
from reasonrec_fast.models.reasonrec.observe import ItemFeatures, SoftItem, picture_features


@pytest.fixture(scope="module")
def data():
    return walks()


@pytest.fixture(scope="module")
def split(data):
    return split_by_time(data, "leave_one_out")


@pytest.fixture(scope="module")
def config(tiny_backbone):
    return small_config(tiny_backbone)


class Colours:
    """An image encoder that sees the mean colour."""

    name, digest, settings, tokens, width = "colours", "0", {}, 1, 3

    def encode(self, images, *, folder=None, max_pixels=None):
        return torch.stack([torch.from_numpy(image.pixels.mean((0, 1))).float() for image in images])[:, None]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Pictures of most items: one is broken, three have none."""
    from PIL import Image

    monkeypatch.setattr("reasonrec_fast.lm.vision.load_image_encoder", lambda name, device=None: Colours())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for item in range(ITEMS - 3):
        Image.new("RGB", (4, 4), tuple(generator.integers(0, 255, 3).tolist())).save(folder / f"i{item}.png")
    (folder / "i0.png").write_bytes(b"no picture")
    return folder


def test_pictures_and_thoughts_are_soft_tokens(data, split, config, pictures, tmp_path, caplog):
    caplog.set_level("INFO", logger="reasonrec_fast")
    agent = replace(config.agent, pictures=str(pictures), thoughts=2, soft_tokens=2, epochs=1.0)
    model = ReasonRec(replace(config, agent=agent)).fit(data, split.train, split.validation)
    assert f"{ITEMS - 4} of {ITEMS} items have a picture" in caplog.text
    assert "1 pictures cannot be read, and are left out" in caplog.text
    observer = model.agent.observer
    known = {data.catalog.ids[item] for item in np.flatnonzero(observer.known)}
    assert known == {f"i{item}" for item in range(1, ITEMS - 3)}
    row = int(np.flatnonzero(observer.known)[0])
    _, (suffix,) = observer([model._prompts.group(0, [row])])[0]
    assert [len(part) for part in suffix if not isinstance(part, list)] == [2, 2]  # the picture, the thoughts
    before = model.recommend(np.arange(USERS), 6, policy="always")
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(pictures)  # they were read when the model was fitted
    after = ReasonRec.from_pretrained(tmp_path / "model").recommend(np.arange(USERS), 6, policy="always")
    assert (before.items == after.items).all()
    np.testing.assert_allclose(before.scores, after.scores, atol=1e-4)


def test_the_agent_learns_from_pictures_alone(config):
    """The target is the candidate whose picture is bright; words say nothing."""
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.normal(size=(40, 1, 3))).half()
    bright = np.arange(40) % 4 == 0
    values[bright, 0, 0] += 6
    kinds = [ItemFeatures("pictures", values, np.ones(40, dtype=bool))]

    def slate():
        items = generator.permutation(40)
        chosen = [int(items[bright[items]][0]), *items[~bright[items]][:3].tolist()]
        order = generator.permutation(4)
        suffixes = [[SoftItem(chosen[index]), 7] for index in order]
        return Slate(([1, 2], suffixes), np.log(np.full(4, 0.25)), int(np.flatnonzero(order == 0)[0]))

    agent = ResidualAgent(replace(config.agent, epochs=4.0, learning_rate=1e-2, head_learning_rate=2e-2), kinds)
    before = agent.observer.projectors["pictures"].second.weight.detach().clone()
    agent.train([slate() for _ in range(60)])
    assert not torch.equal(before, agent.observer.projectors["pictures"].second.weight)
    held_out = [slate() for _ in range(30)]
    logits = agent.logits(held_out)
    assert np.mean([scores.argmax() == one.target for one, scores in zip(held_out, logits, strict=True)]) > 0.8


def test_pictures_that_are_not_there_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="expected a folder; there is none"):
        picture_features(data.catalog, tmp_path / "nothing", "colours")
    with pytest.raises(DataError, match=r"expected files such as i\d+.jpg"):
        picture_features(data.catalog, tmp_path, "colours")


def test_no_identifier_leads_out_of_the_folder(tmp_path, pictures):
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    catalog = Catalog(["../secret", "i1", "a\0b"], ["", "", ""])
    assert picture_features(catalog, pictures, "colours").known.tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["Llava", "Idefics3", "Qwen2_5_VL"])
def test_a_vision_language_model_is_a_backbone_by_its_name(data, split, config, kind, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    processor(kind).save_pretrained(tmp_path / "vlm")
    model = tiny_vlm(kind)
    model.config.get_text_config().max_position_embeddings = 2048
    model.save_pretrained(tmp_path / "vlm")
    generator, pictures = np.random.default_rng(0), tmp_path / "pictures"
    pictures.mkdir()
    for item in range(ITEMS - 3):
        pixels = generator.integers(0, 256, (20 + item, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"i{item}.png")
    agent = replace(
        config.agent, backbone=str(tmp_path / "vlm"), pictures=str(pictures), picture_encoder="backbone", soft_tokens=2
    )
    model = ReasonRec(replace(config, agent=agent)).fit(data, split.train, split.validation)
    (kind,) = model.agent.observer.kinds
    assert tuple(kind.values.shape) == (ITEMS, 2, 32) and kind.values[kind.known].float().std() > 0.05
    # The vision tower reads nothing while the agent learns, so it has no adapters.
    adapted = {name for name, _ in model.agent.peft.named_parameters() if "lora_" in name}
    assert adapted and not any("vision" in name or "visual" in name for name in adapted)
    model.agent.ranker.model.heads[-1].scale.fill_(1.0)
    before = model.recommend(np.arange(USERS), 5, policy="always")
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(pictures)
    after = ReasonRec.from_pretrained(tmp_path / "model").recommend(np.arange(USERS), 5, policy="always")
    assert (before.items == after.items).all()
    np.testing.assert_allclose(before.scores, after.scores, atol=1e-4)


def test_a_backbone_without_eyes_is_refused(data, split, config, pictures):
    agent = replace(config.agent, pictures=str(pictures), picture_encoder="backbone")
    with pytest.raises(ValueError, match="expected an image-text-to-text model of one of idefics3, .*is 'llama'"):
        ReasonRec(replace(config, agent=agent)).fit(data, split.train, split.validation)


def test_vectors_of_a_picture_do_not_depend_on_the_others(tmp_path):
    from PIL import Image

    tiny_vlm("Llava").save_pretrained(tmp_path)
    processor("Llava").save_pretrained(tmp_path)
    encoder = OwnImageEncoder(str(tmp_path), tokens=3, device="cpu")
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (9 + i, 14, 3), dtype=np.uint8)) for i in range(3)]
    together = encoder.encode(images)
    assert together.shape == (3, 3, 32) and encoder.width == 32
    alone = torch.cat([encoder.encode([image]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    # The nine vectors of an image, three by three.
    inputs = processor("Llava")(text=["<image>"], images=[images[0]], return_tensors="pt")
    (text,) = segments_of(encoder._model, inputs)
    expected = text.embeddings[0][1].values.reshape(3, 3, 32).mean(1)
    torch.testing.assert_close(together[0], expected)


def test_a_picture_that_the_tower_refuses_is_left_out(tmp_path, monkeypatch):
    """Qwen2.5-VL's processor refuses pictures of extreme shapes: such a one must not end the training."""
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_vlm("Llava").save_pretrained(tmp_path / "vlm")
    processor("Llava").save_pretrained(tmp_path / "vlm")
    read = transformers.LlavaProcessor.__call__

    def strict(self, images, text, **options):
        width, height = images[0][0].size
        if max(width, height) > 200 * min(width, height):
            raise ValueError(f"absolute aspect ratio must be smaller than 200, got {max(width, height)}")
        return read(self, images=images, text=text, **options)

    monkeypatch.setattr(transformers.LlavaProcessor, "__call__", strict)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, size in {"wide": (900, 2), "dot": (1, 1), "plain": (20, 30)}.items():
        Image.new("RGB", size, "red").save(pictures / f"{name}.png")
    catalog = Catalog(["wide", "dot", "plain", "none"], [""] * 4)
    features = picture_features(catalog, pictures, str(tmp_path / "vlm"), own=2, device="cpu")
    assert features.known.tolist() == [False, True, True, False]
    encoder = OwnImageEncoder(str(tmp_path / "vlm"), tokens=2, device="cpu")
    alone = encoder.encode([str(pictures / "dot.png"), str(pictures / "plain.png")])
    torch.testing.assert_close(features.values[1:3].float(), alone, atol=1e-2, rtol=1e-2)
    with pytest.raises(
        DataError, match=r"images\[1\]: expected an image that .* reads; 900 x 2 pixels: absolute aspect"
    ):
        encoder.encode([str(pictures / "dot.png"), str(pictures / "wide.png")])


def test_an_own_encoder_that_cannot_read_is_refused(tmp_path, monkeypatch):
    tiny_vlm("Llava").save_pretrained(tmp_path)
    processor("Llava").save_pretrained(tmp_path)
    for tokens in (0, 1.5, "2", True):
        with pytest.raises(ValueError, match="tokens: expected a whole number of at least 1"):
            OwnImageEncoder(str(tmp_path), tokens=tokens, device="cpu")
    load = own_image_encoder.load_language_model
    monkeypatch.setattr(own_image_encoder, "load_language_model", lambda *a, **k: (load(*a, **k)[0], object()))
    with pytest.raises(ValueError, match="name: expected a processor with an image_token; .* has a object without"):
        OwnImageEncoder(str(tmp_path), device="cpu")
