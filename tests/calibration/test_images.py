"""Calibration images, and encoders from end to end."""

import io
import json
import shutil
from pathlib import Path

import family_checks
import numpy as np
import pytest
import tiny_families
import torch
from given import cut_of
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import PREPROCESSOR, SIDE
from transformers import AutoModel, CLIPModel, ViTForImageClassification

import replaceme
from replaceme.activations.gather import gather_groups
from replaceme.activations.row_collector import RowOptions, write_rows
from replaceme.calibration.images import Images, calibrate_images, check_images, generated, read_images
from replaceme.calibration.samples import PassedOver
from replaceme.calibration.tokens import load_tokens
from replaceme.cli import main
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.cuts.after_fit import measure_candidates
from replaceme.models.checkpoints import open_checkpoint, read_config
from replaceme.models.loading import load_base_model, load_causal_model
from replaceme.models.model_config import family_of
from replaceme.planning.check_local import check_inputs

CUT = CutConfig(blocks=2)
NEW_NAMES = (
    ("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve small images of several kinds and shapes, some in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for number in range(12):
        image = generated(7, number).resize((20 + number, 40 - number))
        image = image.convert("L") if number == 3 else image
        place = folder / "more" if number % 3 == 0 else folder
        image.save(place / f"{number}.{('png', 'jpg', 'webp', 'bmp')[number % 4]}")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A function that copies a tiny encoder of a family, with its preprocessor_config.json."""

    def make(variant):
        folder = tmp_path_factory.mktemp("encoder") / "model"
        shutil.copytree(tiny_families.source(variant), folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
        return folder

    return make


def given(**options):
    return CalibrationConfig(**{"images": "generated", "samples": 6, **options})


def arrays(config):
    images = read_images(config, PassedOver(config.images))
    return [np.asarray(image) for image, _ in zip(images, range(config.samples), strict=False)]


@pytest.mark.parametrize("kind", ["folder", "generated"])
def test_the_seed_fixes_the_images_and_their_order(photos, kind):
    source = str(photos) if kind == "folder" else kind
    zero, again, one = (arrays(given(images=source, seed=seed)) for seed in (0, 0, 1))
    assert len(zero) == 6
    assert all(np.array_equal(a, b) for a, b in zip(zero, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(zero, one, strict=True))
    assert all(image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 for image in zero)


def test_generated_images_differ_and_are_not_flat():
    images = arrays(given(samples=8))
    assert len({image.tobytes() for image in images}) == 8
    assert min(image.std() for image in images) > 10


def test_pixels_are_what_the_preprocessor_config_says(photos, encoder):
    tokens, record = calibrate_images(given(images=str(photos), samples=20), encoder("vit"))
    assert tokens.pixels.shape == (12, 3, SIDE, SIDE)
    assert tokens.pixels.dtype == torch.float32
    assert record["positions"] == tokens.positions == (SIDE // 4) ** 2 + 1
    assert tokens.count == 12 * 17 and bool(tokens.mask.all())
    # one image by hand: shortest edge, centre crop, mean and standard deviation
    raw = next(read_images(given(images=str(photos)), PassedOver("")))
    scale = SIDE / min(raw.size)
    sized = raw.resize([SIDE if side == min(raw.size) else int(side * scale) for side in raw.size], Image.BICUBIC)
    left, top = ((side - SIDE) // 2 for side in sized.size)
    cropped = np.asarray(sized.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float64) / 255
    expected = (cropped - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"]
    assert np.allclose(tokens.pixels[0].permute(1, 2, 0).numpy(), expected, atol=0.02)


def test_images_are_saved_with_their_hash(tmp_path, encoder, refuses):
    images, record = calibrate_images(given(), encoder("deit"))
    images.save(tmp_path / "images.safetensors", record)
    again, metadata = load_tokens(tmp_path / "images.safetensors")
    assert torch.equal(again.pixels, images.pixels) and again.positions == images.positions
    assert metadata["sha256"] == images.digest() != images.first(5).digest()
    parts = [len(part) for shard in range(2) for part in images.batches(2, shard, 2)]
    assert parts == [2, 2, 2]
    record["sha256"] = "0"
    from replaceme.core.files import save_tensors

    save_tensors(tmp_path / "wrong.safetensors", images.tensors(), record)
    with refuses("wrong.safetensors", "does not match its hash"):
        load_tokens(tmp_path / "wrong.safetensors")


def test_bad_sources_are_one_line_each(photos, tmp_path, encoder, refuses):
    (tmp_path / "empty").mkdir()
    with refuses("empty", "no images in it"):
        check_images(given(images=str(tmp_path / "empty")))
    with refuses("nowhere", "no such folder"):
        check_images(given(images=str(tmp_path / "nowhere")))
    for key, value in {"name": "x", "revision": "x", "split": "test", "column": "x"}.items():
        with refuses(f"a local folder takes no {key}; drop it"):
            check_images(given(images=str(photos), **{key: value}))
    bare = encoder("vit")
    (bare / "preprocessor_config.json").unlink()
    with refuses("no usable preprocessor_config.json"):
        calibrate_images(given(), bare)
    other = encoder("vit")
    (other / "preprocessor_config.json").write_text(
        json.dumps({**PREPROCESSOR, "crop_size": {"height": 12, "width": 12}})
    )
    with refuses("12 x 12", "16 x 16"):
        calibrate_images(given(), other)


def test_files_that_hold_no_image_are_passed_over(photos, tmp_path, encoder, refuses, caplog):
    broken = Path(shutil.copytree(photos, tmp_path / "broken"))
    (broken / "bad.png").write_bytes((broken / "4.png").read_bytes()[:60])
    images, _ = calibrate_images(given(images=str(broken), samples=13), encoder("vit"))
    assert len(images) == 12
    assert "passed over 1 of its records, the first: " in caplog.text and "bad.png: not a readable image" in caplog.text
    for path in broken.iterdir():
        path.write_bytes(b"no image") if path.is_file() else shutil.rmtree(path)
    with refuses("not a readable image"):
        calibrate_images(given(images=str(broken)), encoder("vit"))


def test_a_hub_dataset_gives_its_column_of_images(monkeypatch, encoder, refuses, caplog):
    """Its records in no other order; those of which no image can be made are passed over."""
    import datasets

    stored = []
    for number in range(4):
        generated(0, number).save(file := io.BytesIO(), "PNG")
        stored.append(file.getvalue())
    rows = [{"image": {"bytes": one, "path": None}, "label": 1} for one in (*stored, stored[0][:60])]
    rows.append({"image": None, "label": 1})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    seen = []

    def load_dataset(*args, **options):
        seen.append(args)
        return datasets.IterableDataset.from_generator(lambda: iter(rows), features=features)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    images, record = calibrate_images(given(images="owner/pictures", samples=6), encoder("vit"))
    assert len(images) == 4 and record["column"] == "image" and seen == [("owner/pictures", None)]
    assert (
        "owner/pictures: passed over 2 of its records" in caplog.text and "4 images found, 6 asked for" in caplog.text
    )
    order = [row.sum().item() for row in calibrate_images(given(samples=4), encoder("vit"))[0].pixels]
    assert sorted(row.sum().item() for row in images.pixels) == sorted(order)
    with refuses("no image in column 'label'"):
        calibrate_images(given(images="owner/pictures", column="label"), encoder("vit"))
    with refuses("no column 'picture'; its columns: image, label"):
        calibrate_images(given(images="owner/pictures", column="picture"), encoder("vit"))


def test_images_in_the_config(refuses):
    from replaceme.core.validation import validated

    for options, message in (
        ({}, "give either dataset (text) or images"),
        ({"dataset": "micro", "images": "generated"}, "give either dataset (text) or images"),
        ({"images": "generated", "tokens": 64}, "images take no tokens"),
        ({"images": "generated", "pack": True}, "images take no pack"),
        ({"images": "generated", "split": "test"}, "generated takes no split; drop it"),
        ({"images": "generated", "column": "x", "name": "x"}, "generated takes no column, name; drop it"),
    ):
        with refuses(message):
            validated(CalibrationConfig, options, "config")


def test_the_metrics_and_the_sums_of_an_encoder_are_those_of_its_hidden_states(encoder):
    """Against the states that transformers itself puts out."""
    folder = encoder("dinov2")
    images, _ = calibrate_images(given(samples=10), folder)
    model, family = load_base_model(folder, "float32", "cpu"), family_of(read_config(folder), "dinov2")
    states = model(images.pixels, output_hidden_states=True).hidden_states
    found = measure_candidates(model, family, images, [2], 4)
    first = next(one for one in found if one["start"] == 2)
    expected = 1 - torch.nn.functional.cosine_similarity(states[2].double(), states[4].double(), dim=-1).mean()
    assert first["cosine"] == pytest.approx(float(expected), rel=1e-4)
    statistics = gather_groups(model, family, images.batches(4), [(2, 4)])[0]
    assert statistics.tokens == images.count == 10 * 17


def test_rows_of_images(encoder, tmp_path):
    folder = encoder("clip")
    images, _ = calibrate_images(given(samples=6), folder)
    model, family = load_base_model(folder, "float32", "cpu"), family_of(read_config(folder), "clip")
    assert write_rows(tmp_path / "rows", model, family, images, [(2, 4)], 4, RowOptions(fit_tokens=50))[0].count == 50


def test_prune_a_vit(encoder, photos, tmp_path, capsys):
    folder = encoder("vit")
    main(["prune", str(folder), "--images", str(photos), "--blocks", "2", "--out", str(tmp_path / "out")])
    capsys.readouterr()
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 4
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 3, SIDE, SIDE)).last_hidden_state).all()


@pytest.mark.parametrize("fit", [{}, {"placement": "down_proj"}, {"objective": "cosine"}])
def test_prune_dinov2_with_images_by_name(encoder, photos, tmp_path, fit):
    record = replaceme.prune(
        encoder("dinov2"), images=photos, cut=CUT, fit=FitConfig(**fit, ridge_relative=1e-6), out=tmp_path / "out"
    )
    assert record["origin"]["calibration"]["images"] == photos.name
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 4 and model.config.out_features == ["stage4"]
    start = record["cut"]["groups"][0][0]
    assert torch.equal(model.encoder.layer[start - 1].layer_scale2.lambda1, torch.ones(tiny_families.HIDDEN))


def test_prune_a_whole_clip_leaves_its_text_tower_alone(encoder, tmp_path):
    folder = encoder("clip")
    calibration = CalibrationConfig(images="generated", samples=12)
    replaceme.prune(folder, calibration, cut=CUT, out=tmp_path / "out")
    before, after = CLIPModel.from_pretrained(folder), CLIPModel.from_pretrained(tmp_path / "out")
    assert len(after.vision_model.encoder.layers) == 4
    ids = torch.tensor([[5, 6, 3]])
    assert torch.equal(before.text_model(ids).last_hidden_state, after.text_model(ids).last_hidden_state)
    one, other = (load_file(Path(at) / "model.safetensors") for at in (folder, tmp_path / "out"))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items() if name.startswith("text_"))
    assert read_config(folder)["text_config"] == read_config(tmp_path / "out")["text_config"]


def test_a_classifier_keeps_its_head_and_needs_no_pooler(tmp_path, encoder):
    """As ViT lies on the Hub: tensors `vit.encoder.layer.*`, no pooler."""
    torch.manual_seed(0)
    config = tiny_families.AutoConfig.for_model("vit", **tiny_families.VISION, num_labels=3)
    source = tmp_path / "source"
    ViTForImageClassification(config).save_pretrained(source)
    (source / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    assert open_checkpoint(source).family.blocks == "vit.encoder.layer"
    replaceme.prune(source, given(samples=12), cut=CUT, out=tmp_path / "out")
    before, after = (ViTForImageClassification.from_pretrained(at) for at in (source, tmp_path / "out"))
    assert torch.equal(before.classifier.weight, after.classifier.weight) and len(after.vit.layers) == 4


def new_name_of_vit(name):
    for old, new in NEW_NAMES:
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize(
    ("variant", "rename"), [("vit", new_name_of_vit), ("clip_vision_model", "vision_model.{}".format)]
)
def test_the_other_spelling_of_a_checkpoint(variant, rename, tmp_path):
    """ViT with the names of its modules in transformers 5, CLIP's tower as it lies on the Hub."""
    source = Path(shutil.copytree(tiny_families.source(variant), tmp_path / "source"))
    tensors = {rename(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    assert tensors.keys().isdisjoint(name for name in open_checkpoint(source).tensors if "encoder.layer" in name)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    cut = cut_of(tiny_families.GROUPS, tiny_families.BLOCKS)
    found = tiny_families.transforms(variant, "mlp")
    family_checks.merge(source, cut, found, tmp_path / "out", {})
    other = family_checks.loaded(family_checks.shorter(variant, found))
    ours = family_checks.outputs(family_checks.loaded(tmp_path / "out"), variant)
    assert torch.equal(ours, family_checks.outputs(other, variant))


def test_sizes_that_a_config_leaves_to_transformers(tmp_path):
    """As SigLIP lies on the Hub: `vision_config` says what differs from the defaults."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": {"patch_size": 32, "image_size": 256}})
    )
    sizes = read_config(tmp_path)["vision_config"]
    assert (sizes["num_hidden_layers"], sizes["hidden_size"], sizes["patch_size"]) == (12, 768, 32)


def test_stages_of_a_backbone_are_numbered_anew():
    stages = {"stage_names": ["stem", *(f"stage{k}" for k in range(1, 7))], "out_features": ["stage2", "stage6"]}
    config = {"model_type": "dinov2", "num_hidden_layers": 6, "out_indices": [2, 6], **stages}
    pruned = replaceme.models.model_config.pruned_config(config, [(1, 3)])
    assert pruned["out_indices"] == [1, 4] and pruned["out_features"] == ["stage1", "stage4"]
    assert pruned["stage_names"] == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_text_for_an_encoder_and_images_for_a_language_model(encoder, llama, tmp_path, refuses):
    folder = encoder("vit")
    with refuses("cannot be calibrated on text"):
        replaceme.prune(folder, texts=["a"], cut=CUT, out=tmp_path / "out")
    with refuses("cannot be calibrated on images"):
        replaceme.prune(llama, images="generated", cut=CUT, out=tmp_path / "out")
    for options, message in (
        ({"metric": "loss"}, "metric loss"),
        ({"metric": "taylor"}, "metric taylor"),
        ({"metric": "cosine", "position": "last"}, "last"),
    ):
        with refuses(message, "this is an encoder"):
            replaceme.prune(folder, given(), cut=CutConfig(blocks=2, **options), out=tmp_path / "out")
    for options, message in (
        ({"placement": "block"}, "this is an encoder"),
        ({"placement": "down_proj", "recycle": 0.5}, "no gate"),
    ):
        with refuses(message):
            replaceme.prune(folder, given(), cut=CUT, fit=FitConfig(**options), out=tmp_path / "out")
    with refuses("no head of a language model"):
        load_causal_model(folder, "float32", "cpu")


def test_preflight_of_an_encoder(encoder, refuses):
    from replaceme.config.schema import parse

    raw = {
        "models": {"m": {"source": str(encoder("clip"))}},
        "calibrations": {"photos": {"images": "generated", "samples": 4}},
        "cuts": {"n2": {"blocks": 2}},
        "fits": {"ls": {}},
        "tables": {
            "t": {"models": ["m"], "calibrations": ["photos"], "cuts": ["n2"], "fits": ["ls"], "evaluation": None}
        },
    }
    check_inputs(parse(raw), "c.yaml")
    raw["tables"]["t"]["evaluation"] = "nowhere"
    with refuses("tables.t.evaluation: 'nowhere' is not defined under evaluations"):
        parse(raw)
    del raw["tables"]["t"]["evaluation"]
    with refuses("tables.t.evaluation: missing"):
        parse(raw)
    raw["calibrations"]["photos"] = {"dataset": "micro"}
    raw["evaluations"] = {"e": {"tasks": {"boolq": {}}}}
    raw["tables"]["t"]["evaluation"] = "e"
    with refuses("calibrations.photos on models.m", "cannot be calibrated on text", "tasks do not measure", lines=2):
        check_inputs(parse(raw), "c.yaml")


def test_images_have_the_methods_of_tokens():
    images = Images(torch.arange(24.0).reshape(4, 1, 2, 3), positions=5)
    assert [len(batch) for batch in images.batches(3)] == [3, 1]
    assert images.first(2).count == 10 and images.mask.shape == (4, 5)
