"""Pictures against transformers' processors, sound against what it was written as."""

import json
import pathlib

import numpy as np
import pytest

from llmasos_xla.data.dataset import Dataset
from llmasos_xla.data.pictures import PictureReader, opened
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.data.sound import read_sound, resampled

pytestmark = pytest.mark.usefixtures("unchecked")

GOLDEN = pathlib.Path(__file__).parent / "pictures.npz"


@pytest.mark.parametrize("name", ["vit", "clip", "clip_larger_crop", "convnext", "rt_detr"])
def test_pictures_are_prepared_as_published_models_have_them(name):
    golden = np.load(GOLDEN)
    picture = golden["picture"]
    reader = PictureReader.from_json(json.loads(str(golden[f"{name}/config"])))
    found = reader([picture, picture.swapaxes(0, 1)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden[name], rtol=1e-5, atol=1e-5)


def test_paths_pictures_and_arrays_are_the_same(tmp_path):
    from PIL import Image

    picture = np.load(GOLDEN)["picture"]
    Image.fromarray(picture).save(tmp_path / "a.png")
    same = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture), picture, picture / 255]
    found = PictureReader.imagenet()(same)
    assert found.shape == (5, 224, 224, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))
    np.testing.assert_array_equal(np.asarray(opened(picture[..., 0])), np.repeat(picture[..., :1], 3, -1))


def test_pictures_stand_upright(tmp_path):
    from PIL import ExifTags, Image

    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = 6  # held so that it is to be turned by a quarter, clockwise
    (tmp_path / "class").mkdir()
    file = tmp_path / "class" / "a.png"
    picture.save(file, exif=exif)
    turned = np.rot90(pixels, -1)
    np.testing.assert_array_equal(np.asarray(opened(file)), turned)
    with Image.open(file) as held:
        np.testing.assert_array_equal(np.asarray(opened(held)), turned)
        encode = Preprocessing.fit(Dataset(np.zeros((1, 6, 4, 3), np.uint8)), (6, 4, 3)).encode
        np.testing.assert_array_equal(encode([held])[0], turned)
    np.testing.assert_array_equal(Dataset(tmp_path).take([0]).x[0], turned)


def test_a_folder_says_how(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 8, "do_normalize": False}))
    assert PictureReader.read(tmp_path) == PictureReader(size=(8, 8))
    for damaged in ("{", "[]", '{"size": {"longest_edge": 3}}', '{"size": "large"}'):
        (tmp_path / "preprocessor_config.json").write_text(damaged)
        with pytest.raises(ValueError, match="does not say how pictures are prepared"):
            PictureReader.read(tmp_path)


def deep():
    from PIL import Image

    return Image.fromarray(np.full((4, 4), 999, np.uint16))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: PictureReader()([np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)]), ValueError, "sizes"),
        (
            lambda: opened(np.zeros((4, 4, 3)) - 1),
            ValueError,
            r"of floats from 0 to 1 is wanted, got float64 \(4, 4, 3\)",
        ),
        (lambda: opened("nowhere.png"), FileNotFoundError, "there is no file 'nowhere.png'"),
        (lambda: opened(__file__), ValueError, "is no picture that can be read"),
        (lambda: opened(deep()), ValueError, r"a picture has more than 8 bits a channel \(I;16\); bring it to 8"),
        (
            lambda: Preprocessing.fit(Dataset(np.zeros((1, 4, 4), np.uint8)), (4, 4, 1)).encode([deep()]),
            ValueError,
            "8 bits",
        ),
        (lambda: read_sound("nowhere.wav", 8000), FileNotFoundError, "there is no file 'nowhere.wav'"),
        (lambda: read_sound(__file__, 8000), ValueError, "is no sound that can be read"),
        (lambda: read_sound(np.zeros((2, 2, 2)), 8000), ValueError, r"\[samples, channels\] is wanted, got float64"),
        (
            lambda: read_sound(np.zeros((2, 800)), 8000),
            ValueError,
            r"\(2, 800\) are more channels than samples; .*x\.T",
        ),
        (lambda: read_sound(np.array([0, np.nan]), 8000), ValueError, "read_sound: 1 NaN of 2 values"),
        (lambda: resampled(np.zeros(3, np.float32), 0, 8000), ValueError, "rates above 0"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_sound_is_brought_to_a_rate(tmp_path):
    import soundfile

    seconds = np.arange(4410) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, np.zeros_like(tone)], 1), 44100, subtype="FLOAT")
    found = read_sound(tmp_path / "a.wav", 16000)
    assert found.dtype == np.float32
    assert len(found) == 1600
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(1600) / 16000)
    # But for the ends, where the filter sees silence.
    np.testing.assert_allclose(found[50:-50], expected[50:-50], atol=1e-3)
    bits = np.round(tone * 2**15).astype(np.int16)
    np.testing.assert_allclose(read_sound(bits, 16000, source_rate=44100), 2 * found, atol=1e-4)
