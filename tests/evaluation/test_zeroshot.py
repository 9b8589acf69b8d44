"""Encoders of images and texts on labelled images: against clip-benchmark's own functions, and what is refused."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_clip import COLOURS, EACH, PREPROCESSOR, samples, write_clip, write_labelled
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor

from replaceme.cli import main
from replaceme.config.evaluations import EvaluationConfig, ZeroShotConfig
from replaceme.core.validation import validated
from replaceme.evaluation import image_metrics
from replaceme.evaluation import labelled_images as labelled
from replaceme.evaluation.zeroshot import Encoders, evaluate_zeroshot

pytest.importorskip("clip_benchmark")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
IMAGES = EACH * len(COLOURS)
PROMPTS = ["a photo of {c}.", "a picture of {c}."]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a tiny CLIP."""
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that writes labelled pictures."""
    return lambda *what: write_labelled(tmp_path_factory.mktemp("labelled") / "pictures", *what)


@pytest.fixture(scope="module")
def loader():
    """A function that gives pictures of a kind in batches as clip-benchmark takes them, read without this package."""

    class Batches(list):
        dataset = type("Data", (), {"classes": list(COLOURS)})

    def load(kind, size=5):
        processor = CLIPImageProcessor(
            **{key: PREPROCESSOR[key] for key in PREPROCESSOR if key != "image_processor_type"}
        )
        found = []
        for sample in samples(kind):
            image = Image.open(io.BytesIO(sample["png"])).convert("RGB")
            pixels = processor(images=image, return_tensors="pt")["pixel_values"][0].float()
            label = {
                "classification": lambda one: int(one["cls"]),
                "multilabel": lambda one: torch.from_numpy(np.load(io.BytesIO(one["npy"]))),
                "retrieval": lambda one: one["txt"].decode().split("\n"),
            }[kind](sample)
            found.append((pixels, label))
        parts = [found[k : k + size] for k in range(0, len(found), size)]
        join = {"classification": torch.tensor, "multilabel": torch.stack, "retrieval": list}[kind]
        return Batches((torch.stack([p for p, _ in part]), join([one for _, one in part])) for part in parts)

    return load


@pytest.fixture(scope="module")
def package():
    """The package's own measures, which take seconds to import."""
    return pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")


@pytest.fixture
def with_numpy_2(monkeypatch, package):
    """clip-benchmark makes numbers of arrays of one element, which numpy allows no more."""
    monkeypatch.setattr(package, "float", lambda value: np.asarray(value).item(), raising=False)


def measure(folder, data, *metrics, **options):
    sets = {"d": ZeroShotConfig(images=str(data), metrics=list(metrics))}
    return evaluate_zeroshot(folder, EvaluationConfig(zeroshot=sets, **options))


def values(record):
    return {task["metric"]: task["value"] for task in record["tasks"].values()}


def test_classes_as_by_the_package(package, clip, made, loader, with_numpy_2):
    found = measure(clip, made(), "acc1", "acc5", "mean_per_class_recall", batch_size=7)
    encoders = Encoders(clip)
    expected = package.evaluate(
        encoders, loader("classification"), encoders.tokenize, list(COLOURS), PROMPTS, "cpu", amp=False
    )
    assert values(found) == pytest.approx(expected) and 0 < expected["acc1"] < expected["acc5"] <= 1
    first = found["tasks"]["d_acc1"]
    assert set(first["items"]) == {0.0, 1.0} and len(first["items"]) == first["n"] == IMAGES
    accuracy = expected["acc1"]
    assert first["stderr"] == pytest.approx((accuracy * (1 - accuracy) / (IMAGES - 1)) ** 0.5)
    assert found["average"]["value"] == pytest.approx(accuracy)
    assert [task["in_average"] for task in found["tasks"].values()] == [True, False, False]
    assert found["data"]["d"]["images"] == IMAGES and found["versions"]["clip_benchmark"] != "not installed"
    json.dumps(found, allow_nan=False)


def test_several_labels_as_by_the_package(package, clip, made, loader):
    found = measure(clip, made("multilabel"), "mean_average_precision")
    encoders = Encoders(clip)
    expected = package.evaluate(
        encoders, loader("multilabel"), encoders.tokenize, list(COLOURS), PROMPTS, "cpu", amp=False
    )
    assert values(found) == pytest.approx(expected, rel=1e-5)


def test_captions_as_by_the_package(clip, made, loader):
    numbers = (1, 5)
    metrics = [f"{what}_retrieval_recall@{k}" for k in numbers for what in ("text", "image")]
    found = measure(clip, made("retrieval"), *metrics, batch_size=7)
    encoders = Encoders(clip)
    expected = retrieval.evaluate(encoders, loader("retrieval"), encoders.tokenize, "cpu", False, numbers)
    assert values(found) == pytest.approx(expected)
    assert found["tasks"]["d_text_retrieval_recall@5"]["n"] == IMAGES
    assert found["tasks"]["d_image_retrieval_recall@5"]["n"] == 2 * IMAGES


def read(folder, **options):
    """Return the samples of labelled images as (image, label)."""
    config = ZeroShotConfig(images=str(folder), **options)
    return [(sample.image, sample.label) for sample in labelled.labelled(config).samples()]


def test_one_data_set_in_every_layout(made):
    """In tars and as plain files all is the same, in folders of classes an image of each comes in turn."""
    tar, plain, classes = (read(made("classification", layout)) for layout in ("tar", "plain", "folders"))
    assert tar == plain and len(tar) == IMAGES
    assert sorted(classes) == sorted(tar)
    assert [label for _, label in classes] == list(range(len(COLOURS))) * EACH


@pytest.mark.parametrize("variant", ["clip", "siglip"])
def test_features_are_those_of_transformers(variant, tmp_path):
    """Of texts alone and of texts padded in a batch; SigLIP was trained on padded ones."""
    folder = write_clip(tmp_path, variant)
    encoders, model = Encoders(folder), AutoModel.from_pretrained(folder).eval()
    tokenizer, texts = AutoTokenizer.from_pretrained(folder), ["a photo of a dark red.", "white"]
    padding = "max_length" if variant == "siglip" else False
    length = model.config.text_config.max_position_embeddings
    with torch.no_grad():
        found = encoders.encode_text(encoders.tokenize(texts))
        for text, features in zip(texts, found, strict=True):
            given = tokenizer([text], padding=padding, max_length=length, return_tensors="pt")
            alone = model.get_text_features(input_ids=given["input_ids"]).pooler_output
            assert torch.allclose(alone[0], features, atol=1e-5)
        pixels = torch.randn(2, 3, 16, 16)
        expected = model.get_image_features(pixel_values=pixels).pooler_output
        assert torch.allclose(encoders.encode_image(pixels), expected, atol=1e-5)


@given(st.integers(2, 25), st.integers(2, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_items_of_means_over_classes_are_the_jackknifes(package, images, classes, seed):
    chance = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, classes, generator=chance)
    several = (torch.rand(images, classes, generator=chance) < 0.4).long()
    single = torch.cat([torch.arange(classes).repeat(2), torch.randint(classes, (images,), generator=chance)])
    right = torch.randint(2, (len(single),), generator=chance).double().tolist()

    def precision(kept):
        return package.average_precision_per_class(scores[kept], several[kept]).mean().item()

    def recall(kept):
        shares = [[right[k] for k in kept if single[k] == one] for one in range(classes)]
        return sum(sum(share) / len(share) for share in shares) / classes

    for items, metric in (
        (image_metrics.average_precision(scores, several), precision),
        (image_metrics.recall_by_class(right, single), recall),
    ):
        n = len(items)
        without = np.array([metric([k for k in range(n) if k != one]) for one in range(n)])
        whole = metric(list(range(n)))
        assert np.mean(items) == pytest.approx(whole, abs=1e-6)
        assert np.allclose(items, whole + (n - 1) * (without.mean() - without), atol=1e-4)


def edited(folder, name, text):
    (folder / name).write_text(text)


def without(folder, name):
    (folder / name).unlink()


WRONG = {
    "no folder": (shutil.rmtree, {}, "no such folder"),
    "nothing in it": (lambda at: [shutil.rmtree(at / "test"), (at / "test").mkdir()], {}, "neither tar files"),
    "a broken tar": (lambda at: edited(at, "test/1.tar", "x"), {}, "1.tar: not a readable tar file"),
    "no names": (lambda at: without(at, "classnames.txt"), {}, "no classnames.txt in it"),
    "few names": (lambda at: edited(at, "classnames.txt", "a\nb\n"), {}, "class 2 of 2"),
    "a template that is none": (
        lambda at: edited(at, "zeroshot_classification_templates.txt", "a {c.__class__}"), {}, "is no prompt"
    ),
    "another kind": (lambda at: edited(at, "dataset_type.txt", "retrieval"), {}, "its labels are of retrieval"),
    "no kind": (lambda at: edited(at, "dataset_type.txt", "sorted"), {}, "dataset_type.txt says 'sorted'"),
    "many of few": (lambda at: None, {"metrics": ["acc7"]}, "acc7 of 6 classes"),
    "unknown prompts": (lambda at: None, {"prompts": "cats"}, "clip-benchmark has none of 'cats'"),
    "a revision": (lambda at: None, {"revision": "main"}, "a local folder has no revision"),
}  # fmt: skip


def test_unusable_images_are_one_line_each(made, refuses):
    for change, options, message in WRONG.values():
        folder = made()
        change(folder)
        with refuses(message):
            read(folder, **options)


def test_no_images_are_one_line(clip, made, refuses):
    folder = made()
    for path in folder.glob("test/*.tar"):
        tarfile.open(path, "w").close()
    with refuses("no images in it"):
        measure(clip, folder, "acc1")


def split_twice(folder):
    """Use train/ and val/ instead of test/, and no names of classes."""
    without(folder, "classnames.txt")
    shutil.copytree(folder / "test", folder / "train")
    (folder / "test").rename(folder / "val")


def test_a_split_that_is_not_there_is_not_the_whole_folder(made, refuses):
    for layout in ("tar", "plain", "folders"):
        folder = made("classification", layout)
        with refuses("no split 'tset'", "test/"):
            read(folder, split="tset")
        split_twice(folder)
        with refuses(f"{folder}: taken as split 'test'", "train/, val/"):
            read(folder)


def test_folders_of_classes_need_no_split(made):
    folder = made("classification", "folders") / "test"
    found = labelled.labelled(ZeroShotConfig(images=str(folder)))
    assert found.classes == tuple(COLOURS) and len(list(found.samples())) == IMAGES


def tar_of(folder, names):
    """Write a tar of labelled pictures whose files have the names that `names` makes of a sample's number and an
    ending.
    """
    place = folder / "test"
    for path in place.glob("*.tar"):
        path.unlink()
    with tarfile.open(place / "0.tar", "w") as archive:
        for number, sample in enumerate(samples("classification")):
            for ending, data in sample.items():
                member = tarfile.TarInfo(names(number, ending))
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def test_folders_in_a_tar_belong_to_the_names_of_samples(made, refuses):
    folder = made()
    stored = read(folder)
    for names in ("{0:04}/image.{1}", "./a.b/{0:04}.{1}"):
        tar_of(folder, names.format)
        found = list(labelled.labelled(ZeroShotConfig(images=str(folder))).samples())
        assert [(one.image, one.label) for one in found] == stored and len({one.name for one in found}) == IMAGES
    tar_of(folder, "a/image.{1}".format)
    with refuses("0.tar: a/image: two files .png of one sample"):
        read(folder)


def test_samples_without_a_label_or_with_two_pictures(clip, made, refuses):
    folder, of_several = made("multilabel", "plain"), {"metrics": ["mean_average_precision"]}
    stored = (folder / "test/s0000001.npy").read_bytes()
    for broken in (stored[:-8], b"PK", stored.replace(b"'<i8'", b"'|O' ")):  # cut off, of another kind, of objects
        (folder / "test/s0000001.npy").write_bytes(broken)
        with refuses("s0000001: label not readable"):
            read(folder, **of_several)
    (folder / "test/s0000001.npy").unlink()
    with refuses("s0000001: a sample of this kind (multilabel) is an image and a .npy; this one has png"):
        read(folder, **of_several)
    folder = made("retrieval", "plain")
    (folder / "test/s0000002.txt").write_text("\n")
    with refuses("s0000002: label not readable (no caption)"):
        read(folder, metrics=["text_retrieval_recall@1"])
    with refuses("image_retrieval_recall@99 among 24"):
        measure(clip, made("retrieval"), "image_retrieval_recall@99")


def test_names_and_prompts_of_the_package(made, tmp_path):
    """Of `eurosat` it has both, of `cifar10` prompts alone; folders name the classes that nothing else names."""
    folder = made("classification", "folders")
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        without(folder, name)
    plain = labelled.labelled(ZeroShotConfig(images=str(folder)))
    assert plain.classes == tuple(COLOURS) and plain.templates == ("a photo of a {c}.",)
    prompted = labelled.labelled(ZeroShotConfig(images=str(folder), prompts="cifar10"))
    assert prompted.classes == tuple(COLOURS) and len(prompted.templates) == 18
    for number in range(4):
        shutil.copytree(folder / "test/blue", folder / f"test/more{number}")
    named = labelled.labelled(ZeroShotConfig(images=str(folder), prompts="eurosat"))
    assert named.classes[:2] == ("annual crop land", "forest") and len(named.templates) == 3


def test_models_that_cannot_be_compared_with_texts(made, llama, tmp_path, refuses):
    for folder in (llama, write_clip(tmp_path / "vit", "vit")):
        with refuses("no encoder of both images and texts"):
            measure(folder, made(), "acc1")
    broken = write_clip(tmp_path / "broken")
    model = AutoModel.from_pretrained(broken)
    model.visual_projection.weight.data[0, 0] = float("nan")
    model.save_pretrained(broken)
    with refuses("its features are not finite"):
        measure(broken, made(), "acc1")


def test_without_the_package(clip, made, monkeypatch, refuses):
    monkeypatch.setattr(labelled, "find_spec", lambda name: None)
    with refuses("needs the package clip-benchmark", "pip install --no-deps"):
        measure(clip, made(), "acc1")


def test_metrics_in_the_config(refuses):
    for metrics, message in (
        (["acc0"], "'acc0' is no metric"), (["acc<k>"], "'acc<k>' is no metric"),
        (["acc1", "text_retrieval_recall@5"], "metrics of one kind"), (["acc1", "acc1"], "named twice"),
    ):  # fmt: skip
        with refuses("zeroshot.d.metrics", message):
            validated(EvaluationConfig, {"zeroshot": {"d": {"images": "there", "metrics": metrics}}}, "config")
    captions = {"images": "there", "metrics": ["text_retrieval_recall@5"], "prompts": "cifar10"}
    with refuses("zeroshot.d: retrieval compares images with their captions; drop prompts"):
        validated(EvaluationConfig, {"zeroshot": {"d": captions}}, "config")


def test_tasks_or_images(refuses):
    images = {"zeroshot": {"d": {"images": "there", "metrics": ["acc5", "acc1"]}}}
    assert EvaluationConfig(**images).columns == ["d_acc5", "d_acc1"]
    for section, message in (
        ({}, "give either tasks (language models) or zeroshot"),
        ({**images, "tasks": {"boolq": {}}}, "give either tasks (language models) or zeroshot"),
        ({**images, "include": "tasks"}, "zeroshot takes no include"),
        ({**images, "seed": 1}, "zeroshot takes no seed"),
    ):
        with refuses(message):
            validated(EvaluationConfig, section, "config")


def test_the_command(clip, made, tmp_path, capsys):
    given = json.dumps({"images": str(made("retrieval")), "metrics": ["image_retrieval_recall@5"]})
    out = tmp_path / "out.json"
    command = ["evaluate", str(clip), "--zeroshot", f"pictures={given}", "--limit", "6", "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    assert json.loads(out.read_text())["tasks"]["pictures_image_retrieval_recall@5"]["n"] == 12
    assert main(["evaluate", str(clip), "--out", str(out)]) == 1
    assert "give either tasks" in capsys.readouterr().err
