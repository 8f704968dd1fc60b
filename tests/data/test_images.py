"""Data sets: what is embedded, what is read from disk, and one clear sentence for the rest."""

import gzip
import hashlib
import io
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest

from jaxnas import data
from jaxnas.data import dataset as dataset_module
from jaxnas.data import sources, tfds_source

RNG = np.random.default_rng(0)


def arrays(count=40, size=8, channels=3, classes=4):
    def images(n):
        return RNG.integers(0, 256, (n, size, size, channels), dtype=np.uint8)

    return {
        "x_train": images(count), "y_train": np.arange(count) % classes,
        "x_test": images(count // 2), "y_test": np.arange(count // 2) % classes,
    }


def saved(path, **values):
    np.savez(path, **values)
    return str(path)


# ---- embedded ------------------------------------------------------------------------------------


def test_digits():
    digits = data.load("digits")
    assert digits.name == "digits" and digits.image_shape == (8, 8, 1)
    assert digits.train_images.shape[0] == 1437 and digits.test_images.shape[0] == 360
    assert (digits.augmentation, digits.crop_padding, digits.flip) == ("crop", 1, False)
    assert (digits.max_value, digits.num_classes) == (16.0, 10)
    assert digits.train_images.max() == 16
    scaled = digits.train_images / 16.0
    np.testing.assert_allclose(digits.mean[0], scaled.mean(), rtol=1e-12)
    np.testing.assert_allclose(digits.std[0], scaled.std(), rtol=1e-12)
    everything = np.concatenate([digits.train_labels, digits.test_labels])
    assert np.bincount(everything).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(digits.test_labels).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert digits.train_images.dtype == np.uint8 and digits.train_labels.dtype == np.int32
    assert digits.sha256 == data.load("digits").sha256
    assert digits.sha256.startswith("ace2bfc8")  # the contents are part of published results


def test_digits_are_those_of_scikit_learn():
    reference = pytest.importorskip("sklearn.datasets").load_digits()
    with np.load(io.BytesIO(_file("digits.npz")), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["images"][..., 0], reference.images)
        np.testing.assert_array_equal(archive["labels"], reference.target)
        both = np.concatenate([archive["train_indices"], archive["test_indices"]])
    assert sorted(both) == list(range(1797))


def _file(name):
    return (sources.importlib.resources.files("jaxnas.data") / "files" / name).read_bytes()


def test_embedded_files_are_small_and_licensed():
    for name in ("digits", "fashion_mnist"):
        assert len(_file(f"{name}.npz")) < 5_000_000
        assert b"icense" in _file(f"{name}.LICENSE.txt")


def test_fashion_mnist_cut():
    fashion = data.load("fashion_mnist_12k")
    assert fashion.name == "fashion_mnist_12k" and fashion.image_shape == (28, 28, 1)
    assert len(fashion.train_images) == 10_000 and len(fashion.test_images) == 2_000
    assert (fashion.augmentation, fashion.crop_padding) == ("crop_flip", 4)
    assert fashion.class_names[9] == "Ankle boot"
    assert abs(fashion.mean[0] - 0.286) < 1e-3 and abs(fashion.std[0] - 0.354) < 1e-3


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture
def idx_folder(tmp_path):
    for file, (count, rank) in zip(sources._IDX, ((50, 3), (50, 1), (20, 3), (20, 1))):
        shape = (count, 28, 28) if rank == 3 else (count,)
        values = RNG.integers(0, 256, shape) if rank == 3 else np.arange(count) % 10
        write_idx(tmp_path / file, values.astype(np.uint8))
    return tmp_path


def test_fashion_mnist_prefers_the_whole_set(idx_folder, tmp_path_factory, monkeypatch):
    whole = data.load("fashion_mnist", data_dir=idx_folder)
    assert whole.name == "fashion_mnist_70k" and len(whole.train_images) == 50
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path_factory.mktemp("none"))
    cut = data.load("fashion_mnist", data_dir=tmp_path_factory.mktemp("empty"))
    assert cut.name == "fashion_mnist_12k"
    with pytest.raises(data.DatasetError, match="apt-get install dataset-fashion-mnist"):
        data.load("fashion_mnist_70k", data_dir=tmp_path_factory.mktemp("empty"))


def test_damaged_idx_files(idx_folder):
    path = idx_folder / sources._IDX[0]
    good = path.read_bytes()
    for bad in (good[:-9], good[:40], b"", b"no gzip", gzip.compress(b"\0\0\x0d\x01" + b"\0" * 4),
                gzip.compress(gzip.decompress(good)[:-1])):
        path.write_bytes(bad)
        with pytest.raises(data.DatasetError, match=path.name):
            data.load("fashion_mnist", data_dir=idx_folder)
    path.unlink()
    with pytest.raises(data.DatasetError, match=f"{path.name} is missing"):
        data.load("fashion_mnist", data_dir=idx_folder)


# ---- a user's npz --------------------------------------------------------------------------------


def test_npz_with_four_arrays(tmp_path):
    values = arrays()
    dataset = data.load(saved(tmp_path / "mine.npz", **values))
    assert dataset.name == "mine" and dataset.num_classes == 4
    np.testing.assert_array_equal(dataset.train_images, values["x_train"])
    np.testing.assert_array_equal(dataset.test_labels, values["y_test"])
    assert (dataset.augmentation, dataset.crop_padding) == ("crop_flip", 1)
    np.testing.assert_allclose(dataset.std, (values["x_train"] / 255).std((0, 1, 2)), rtol=1e-12)
    plain = data.load(str(tmp_path / "mine.npz"), augmentation="none")
    assert (plain.augmentation, plain.crop_padding) == ("none", 0)
    with pytest.raises(data.DatasetError, match="augmentation must be one of"):
        data.load("digits", augmentation="mixup")


def test_npz_floats_and_gray_images_without_channels(tmp_path):
    values = arrays(channels=1)
    floats = {k: v[..., 0] / np.float32(255) if k[0] == "x" else v for k, v in values.items()}
    dataset = data.load(saved(tmp_path / "a.npz", **floats, class_names=np.array(list("abcd"))))
    np.testing.assert_array_equal(dataset.train_images, values["x_train"])
    assert dataset.class_names == ("a", "b", "c", "d")
    assert dataset.sha256 == data.load(saved(tmp_path / "b.npz", **values)).sha256
    values["x_test"] = values["x_test"].copy()
    values["x_test"][0, 0, 0, 0] ^= 1
    assert dataset.sha256 != data.load(saved(tmp_path / "c.npz", **values)).sha256


def test_npz_x_y_is_split_by_class_and_always_the_same(tmp_path):
    values = arrays(count=100)
    path = saved(tmp_path / "xy.npz", x=values["x_train"], y=values["y_train"])
    dataset = data.load(path)
    assert np.bincount(dataset.train_labels).tolist() == [20] * 4
    assert np.bincount(dataset.test_labels).tolist() == [5] * 4
    rows = {image.tobytes() for image in dataset.train_images}
    assert not rows & {image.tobytes() for image in dataset.test_images}
    assert dataset.sha256 == data.load(path).sha256


def changed(**changes):
    return {**arrays(), **changes}


X, Y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize("values, message", [
    ({"x_train": X, "y_train": Y, "x_test": X}, "array y_test is missing; needed are x_train, "),
    ({"x": X}, "present are x"),
    ({}, "present are none"),
    (changed(x_train=X.reshape(40, -1)), r"x_train must be \[N, H, W\] or .* got shape \[40, 192"),
    (changed(x_train=X[:0], y_train=Y[:0]), "x_train holds no images"),
    (changed(y_train=Y[:39]), "y_train has 39 labels for the 40 images of x_train"),
    (changed(x_test=arrays(size=9)["x_test"]), "x_train and x_test hold images of different shape"),
    (changed(y_train=Y - 1), "y_train must be 0 or larger, got -1"),
    (changed(y_test=np.full(20, -3)), "y_test must be 0 or larger, got -3"),
    (changed(y_train=Y.astype(float)), "y_train must be integers, got dtype float64"),
    (changed(y_train=Y == 1), "y_train must be integers, got dtype bool"),
    (changed(y_train=Y[:, None]), r"y_train must be \[N\], got shape \[40, 1\]"),
    (changed(y_train=Y + 1), "y_train must hold every class from 0 to 4, class 0 is missing"),
    (changed(y_train=Y * 2), "every class from 0 to 6, class 1 is missing"),
    (changed(y_train=Y * 2**40), "class 1 is missing"),
    (changed(y_train=Y * 0, y_test=arrays()["y_test"] * 0), "two classes or more"),
    (changed(y_test=arrays()["y_test"] + 1), "y_test holds class 4, which is missing in y_train"),
    (changed(x_train=np.where(X == 3, np.nan, X / 255)), "x_train holds pixels that are NaN"),
    (changed(x_train=np.full_like(X, np.inf, float)), "NaN or infinite"),
    (changed(x_train=X * 1.0), "x_train must hold float64 pixels from 0 to 1, got 0.0 to"),
    (changed(x_train=X.astype(int) - 1), "x_train must hold int64 pixels from 0 to 255, got -1"),
    (changed(x_train=X.astype(complex)), "got dtype complex128"),
    (changed(x_train=X.astype(str)), "x_train must be uint8, or float"),
    (changed(x_train=X[:, :3]), "images of 4 to 1024 pixels a side, got 3x8"),
    (changed(x_train=X[..., :2]), "1, 3 or 4 channels .last., got 2"),
    (changed(x_train=np.array([[1, None]], object)), "x_train holds Python objects"),
    (changed(class_names=np.array(["a", "b"])), "2 class names for 4 classes"),
    ({"x": X, "y": Y[:3]}, "array y has 3 labels"),
    ({"x": X, "y": np.r_[4, Y[1:]]}, "every class twice or more"),
])
def test_npz_errors_are_one_sentence_naming_file_and_array(tmp_path, values, message):
    path = saved(tmp_path / "bad.npz", **values)
    with pytest.raises(data.DatasetError, match=message) as error:
        data.load(path)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(data.DatasetError, match="There is no file"):
        data.load(str(path))
    for contents in (b"", b"hello", b"PK\x03\x04", X.tobytes()):
        path.write_bytes(contents)
        with pytest.raises(data.DatasetError, match="bad.npz is not an .npz file"):
            data.load(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        for array in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(array, "text")
    with pytest.raises(data.DatasetError, match="x_train is not stored as a numpy array"):
        data.load(str(path))


def test_a_damaged_npz_is_rejected_or_unharmed(tmp_path):
    path = tmp_path / "mine.npz"
    want = data.load(saved(path, **arrays())).sha256
    good = path.read_bytes()
    for position in np.linspace(0, len(good) - 1, 60).astype(int):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        try:
            assert data.load(str(path)).sha256 == want
        except data.DatasetError as error:
            assert "\n" not in str(error)


# ---- CIFAR ---------------------------------------------------------------------------------------


@pytest.fixture
def cifar_archive(tmp_path, monkeypatch):
    """A small archive in the layout of the published one, and its md5 in the table."""

    def make(name, label_bytes):
        cifar = sources.CIFAR[name]
        classes = 10
        rows = []
        with tarfile.open(tmp_path / cifar.archive, "w:gz") as archive:
            def add(file, contents):
                info = tarfile.TarInfo(file)
                info.size = len(contents)
                archive.addfile(info, io.BytesIO(contents))

            for file in (*cifar.train, *cifar.test):
                block = RNG.integers(0, 256, (20, label_bytes + 3072), dtype=np.uint8)
                block[:, label_bytes - 1] = np.arange(20) % classes
                rows.append(block)
                add(file, block.tobytes())
            add(cifar.class_names, "\n".join(f"class{i}" for i in range(classes)).encode())
        digest = hashlib.md5((tmp_path / cifar.archive).read_bytes()).hexdigest()
        monkeypatch.setitem(sources.CIFAR, name, cifar._replace(md5=digest))
        return tmp_path / cifar.archive, rows

    return make


@pytest.mark.parametrize("name, label_bytes, files", [("cifar10", 1, 5), ("cifar100", 2, 1)])
def test_cifar_archive(cifar_archive, name, label_bytes, files):
    path, rows = cifar_archive(name, label_bytes)
    dataset = data.load(name, data_dir=path.parent)
    assert dataset.train_images.shape == (20 * files, 32, 32, 3)
    assert dataset.test_images.shape == (20, 32, 32, 3)
    assert (dataset.augmentation, dataset.crop_padding) == ("crop_flip", 4)
    assert dataset.class_names[3] == "class3"
    # pixel (row 2, column 5) of the green plane of the second image
    assert dataset.train_images[1, 2, 5, 1] == rows[0][1, label_bytes + 1024 + 2 * 32 + 5]
    downloads = path.parent / "downloads" / "cifar"
    downloads.mkdir(parents=True)
    path.rename(downloads / f"cs.toronto.edu_kriz_{path.name.removesuffix('.tar.gz')}AbC.tar.gz")
    assert data.load(name, data_dir=path.parent).sha256 == dataset.sha256


def test_cifar_published_digests_and_damage(cifar_archive, tmp_path):
    assert sources.CIFAR["cifar10"].md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert sources.CIFAR["cifar100"].md5 == "03b5dce01913d631647c71ecec9e9cb8"
    path, _ = cifar_archive("cifar10", 1)
    good = path.read_bytes()
    for bad in (good[:-100], good[:500] + b"x" + good[501:], b""):
        path.write_bytes(bad)
        with pytest.raises(data.DatasetError, match="cifar-10-binary.tar.gz is damaged"):
            data.load("cifar10", data_dir=tmp_path)


def test_cifar_download_is_checked(tmp_path, cifar_archive, monkeypatch):
    path, _ = cifar_archive("cifar10", 1)
    published = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(
        sources.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(published[:-1])
    )
    with pytest.raises(data.DatasetError, match="MD5"):
        data.load("cifar10", data_dir=tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(
        sources.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(published)
    )
    assert data.load("cifar10", data_dir=tmp_path, download=True).name == "cifar10"
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


# ---- tensorflow-datasets -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "svhn_cropped", "no_such_set", "../x", ""])
def test_what_is_not_there_fails_fast_and_says_what_to_do(tmp_path, name):
    start = time.perf_counter()
    with pytest.raises(data.DatasetError) as error:
        data.load(name, data_dir=tmp_path)
    assert time.perf_counter() - start < 2
    assert "digits" in str(error.value) and "\n" not in str(error.value)
    if name in ("cifar10", "svhn_cropped"):
        assert str(tmp_path) in str(error.value) and "download=True" in str(error.value)


def test_prepared_array_record_is_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    values = arrays(count=30, size=6)

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({
                "image": tfds.features.Tensor(shape=(6, 6, 3), dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
            })
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(part) for part in ("train", "test")}

        def _generate_examples(self, part):
            for i, (x, y) in enumerate(zip(values[f"x_{part}"], values[f"y_{part}"])):
                yield i, {"image": x, "label": int(y)}

    TinyImages(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    dataset = data.load("tiny_images", data_dir=tmp_path)
    assert dataset.class_names == ("a", "b", "c", "d")
    stored = {(x.tobytes(), int(y)) for x, y in zip(values["x_train"], values["y_train"])}
    read = {(x.tobytes(), int(y)) for x, y in zip(dataset.train_images, dataset.train_labels)}
    assert stored == read and len(dataset.test_images) == 15
    for file in tfds_source.find("tiny_images", tmp_path).glob("*train*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(data.DatasetError, match="split train cannot be read"):
        data.load("tiny_images", data_dir=tmp_path)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(data.DatasetError, match=r"pip install 'jaxnas\[datasets\]'"):
        data.load("svhn_cropped", data_dir=tmp_path, download=True)


def test_the_newest_prepared_version_is_found(tmp_path):
    for version in ("some/9.0.0", "some/10.0.0", "other/plain/1.0.0"):
        (tmp_path / version).mkdir(parents=True)
        (tmp_path / version / "dataset_info.json").write_text("{}")
    assert tfds_source.find("some", tmp_path).name == "10.0.0"
    assert tfds_source.find("other", tmp_path) == tfds_source.find("other/plain", tmp_path)
    assert tfds_source.find("third", tmp_path) is None


def test_a_constant_channel_has_standard_deviation_one():
    images = np.full((5, 4, 4, 2), 255, np.uint8)
    images[..., 0] = np.arange(4)
    mean, std = dataset_module.channel_statistics(images, 255)
    np.testing.assert_allclose(mean, (1.5 / 255, 1.0))
    np.testing.assert_allclose(std, (np.sqrt(1.25) / 255, 1.0))
