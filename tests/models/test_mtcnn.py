"""MTCNN: published weights give published outputs, and a face is found in a photograph."""

import jax
import numpy as np
import pytest

from llmasos_xla.models import FaceDetector, MTCNNConfig, pretrained
from llmasos_xla.models.face_detection import _means, suppress

NETS = {"PNet": ("proposal", "pnet.pt"), "RNet": ("refinement", "rnet.pt"), "ONet": ("output", "onet.pt")}


@pytest.mark.parametrize("net", NETS)
def test_published_weights_give_the_published_outputs(shared_data, net):
    stage, file = NETS[net]
    folder = shared_data / "weights_mtcnn"
    config = MTCNNConfig(stage)
    variables = pretrained.load(config, folder / file)
    with np.load(folder / "ref.npz") as reference:
        wanted = [reference[f"{net}_out{i}"] for i in range(3 if stage == "output" else 2)]
        x = reference[f"{net}_in"].transpose(0, 2, 3, 1)
    if stage == "proposal":
        wanted = [a.transpose(0, 2, 3, 1) for a in wanted]
    said = jax.jit(config.net().apply)(variables, x)[0]
    parts = [said.boxes, *([] if said.points is None else [said.points]), jax.nn.softmax(said.logits)]
    for got, there in zip(parts, wanted, strict=True):
        np.testing.assert_allclose(got, there, atol=1e-4)


@pytest.fixture(scope="module")
def detector(shared_data):
    return FaceDetector.load(shared_data / "weights_mtcnn", smallest=60)


def test_the_face_of_a_photograph_is_found(detector):
    cbook = pytest.importorskip("matplotlib.cbook")
    image = pytest.importorskip("PIL.Image")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = np.asarray(image.open(file).convert("RGB"))
    faces = detector(picture)
    # What facenet-pytorch's own program gives for it, with minsize=60.
    points = [
        [222.0565, 192.0544],
        [308.8925, 186.7805],
        [267.5717, 238.3683],
        [233.2363, 278.7457],
        [307.6581, 274.7701],
    ]
    np.testing.assert_allclose(faces.boxes, [[171.5765, 110.3976, 352.8475, 332.1534]], atol=0.01)
    np.testing.assert_allclose(faces.points, [points], atol=0.01)
    np.testing.assert_allclose(faces.scores, [0.99999058], atol=1e-5)
    alpha = np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=-1)
    for same in (image.fromarray(picture), picture / 255, picture.astype(np.float64), alpha):
        np.testing.assert_allclose(detector(same).boxes, faces.boxes, atol=0.01)
    gray = np.asarray(image.fromarray(picture).convert("L"))
    np.testing.assert_array_equal(detector(gray).boxes, detector(gray[..., None]).boxes)
    assert detector(gray).boxes.shape == (1, 4)


def test_it_wants_one_picture(detector):
    with pytest.raises(ValueError, match=r"wants one image \(height, width, 3\), RGB, got shape \(1, 9, 9, 3\)"):
        detector(np.zeros((1, 9, 9, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match="there is no file 'nowhere.png'"):
        detector("nowhere.png")


def test_nothing_is_found_in_nothing(detector):
    faces = detector(np.full((90, 70, 3), 127, np.uint8))
    assert faces.boxes.shape == (0, 4)
    assert faces.points.shape == (0, 5, 2)
    assert detector(np.zeros((20, 30, 3), np.uint8)).scores.shape == (0,)


def test_boxes_that_overlap_a_likelier_one_are_dropped(rng):
    corners = rng.uniform(0, 40, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 20, (60, 2))], axis=1)
    scores = rng.uniform(size=60)

    def overlap(a, b):
        common = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
        return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)

    kept = suppress(boxes, scores, 0.3)
    assert list(scores[kept]) == sorted(scores[kept], reverse=True)
    for i in range(60):
        likelier = [overlap(boxes[i], boxes[j]) for j in kept if scores[j] > scores[i]]
        assert (i in kept) == (not likelier or max(likelier) <= 0.3)


@pytest.mark.parametrize(("given", "wanted"), [(7, 3), (3, 7), (12, 12), (24, 6)])
def test_means_keep_a_constant_and_count_every_pixel(given, wanted):
    weights = _means(given, wanted)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
    assert (weights.sum(0) > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MTCNNConfig("first"), "unknown stage 'first'; Known: output, proposal, refinement"),
        (lambda: MTCNNConfig("output").output_shape((48, 50, 3)), "the output network reads images of 48x48"),
        (
            lambda: MTCNNConfig("proposal").output_shape((11, 50, 3)),
            "reads windows of 12x12, got images of (11, 50, 3)",
        ),
    ],
)
def test_it_refuses_in_words(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
