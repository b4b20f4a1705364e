import numpy as np
import pytest

from llmasos_xla.data import Dataset, Preprocessing
from llmasos_xla.data.batches import batches

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")


@pytest.fixture
def pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), np.uint8)
    for i, image in enumerate(images):
        folder = tmp_path / ("cat" if i % 2 else "dog")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "readme.md").write_text("no picture")
    return tmp_path, images


def test_pictures_by_class(pictures):
    folder, images = pictures
    data = Dataset(folder)
    assert repr(data) == f"Dataset({folder}: 6 rows, x image read on demand, y 2 classes, mode=train)"
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.rows().x, images[[1, 3, 5, 0, 2, 4]])
    preprocessing = Preprocessing.fit(data)
    assert preprocessing.dtype == "uint8"
    assert preprocessing.label_names == ("cat", "dog")
    (group,) = batches(data, preprocessing, batch_size=6, shuffle=False)
    np.testing.assert_array_equal(group.x[0], data.rows().x)


def test_pictures_resized_and_grey(pictures):
    folder, images = pictures
    data = Dataset(folder, image_size=(4, 5), channels=1)
    assert data[0][0].shape == (4, 5, 1)
    expected = np.asarray(Image.fromarray(images[1]).convert("L").resize((5, 4)))
    np.testing.assert_array_equal(data[0][0][..., 0], expected)
    assert Dataset(folder / "cat").classes is None
    assert Dataset(folder / "cat", labels=[1, 0, 1]).labels.tolist() == [1, 0, 1]


def test_errors_of_pictures(pictures, tmp_path):
    folder, images = pictures
    Image.fromarray(images[0][:4]).save(folder / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"9.png is 4x10, the first picture 8x10; .* with image_size="):
        Dataset(folder).rows()
    assert Dataset(folder, image_size=(8, 10)).rows().x.shape == (7, 8, 10, 3)
    Image.fromarray(images[0, ..., 0]).save(folder / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"1.png has colors \(RGB\) that the first picture has not; say with"):
        Dataset(folder).take([1])
    Image.fromarray(np.zeros((8, 10), np.uint16)).save(folder / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"9.png has more than 8 bits a channel"):
        Dataset(folder, channels=3).rows()
    whole = (folder / "dog" / "0.png").read_bytes()
    (folder / "dog" / "9.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"9.png is damaged"):
        Dataset(folder, channels=3).rows()
    (folder / "dog" / "9.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"9.png is damaged or no picture"):
        Dataset(folder, channels=3).rows()
    Image.fromarray(images[0]).save(folder / "loose.png")
    with pytest.raises(ValueError, match=r"holds folders of pictures \(cat, dog\) and pictures .* \(loose.png\)"):
        Dataset(folder)
    with pytest.raises(ValueError, match=r"channels=2; 1"):
        Dataset(folder, channels=2)
    with pytest.raises(ValueError, match=r"holds 4 pictures, and labels= has 1"):
        Dataset(folder / "cat", labels=[1])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"holds no images or audio"):
        Dataset(empty)
    with pytest.raises(ValueError, match=r"holds no pictures"):
        Dataset(empty, kind="images")


@pytest.fixture
def sounds(tmp_path):
    waves = [np.sin(np.arange(n) / 5).astype(np.float32) / 2 for n in (50, 80, 60)]
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{i % 2}_speaker_{i}.wav", wave, 8000, subtype="FLOAT")
    return tmp_path, waves


def test_sounds_are_padded_and_cut(sounds):
    folder, waves = sounds
    data = Dataset(folder, label_from=r"^(\d)_")
    assert data.classes == ("0", "1")
    np.testing.assert_array_equal(data.labels, [0, 0, 1])
    x = data.rows().x
    assert x.shape == (3, 80)
    np.testing.assert_array_equal(x[0, :50], waves[0])
    assert not x[0, 50:].any()
    cut = Dataset(folder, length=40, label_from=lambda name: name.split("_")[0])
    np.testing.assert_array_equal(cut.rows().x[2], waves[1][:40])
    preprocessing = Preprocessing.fit(cut, (40, 1))
    (group,) = batches(cut, preprocessing, batch_size=3, shuffle=False)
    assert group.x.shape == (1, 3, 40, 1)


def test_sounds_by_folder_and_stereo(tmp_path):
    for name in ("up", "down"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.flac", np.zeros((30, 2)), 16000)
    data = Dataset(tmp_path)
    assert data.classes == ("down", "up")
    assert data.rows().x.shape == (2, 30, 2)


def test_errors_of_sounds(sounds):
    folder, waves = sounds
    with pytest.raises(ValueError, match=r"label_from='x' finds nothing in the file name '0_speaker_0.wav'"):
        Dataset(folder, label_from="x")
    with pytest.raises(ValueError, match=r"length=0; a number of samples above 0"):
        Dataset(folder, length=0)
    with pytest.raises(ValueError, match=r"holds 3 sound files, and labels= has 2"):
        Dataset(folder, labels=[1, 2])
    soundfile.write(folder / "fast.wav", waves[0], 16000)
    with pytest.raises(
        ValueError, match=r"fast.wav has 16000 Hz and 1 channels, .*0_speaker_0.wav 8000 Hz and 1; bring"
    ):
        Dataset(folder)
    (folder / "fast.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"fast.wav is damaged or no sound file"):
        Dataset(folder)
