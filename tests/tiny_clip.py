"""A tiny CLIP with random weights that knows a few words, and hand-made pictures with labels of every kind."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import tiny_families
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SIDE = tiny_families.VISION["image_size"]
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": SIDE},
    "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3,
}  # fmt: skip
COLOURS = {
    "blue": (30, 40, 220), "dark red": (120, 10, 20), "green": (20, 200, 60), "grey": (120, 120, 120),
    "white": (250, 245, 240), "yellow": (240, 220, 30),
}  # fmt: skip
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "picture", ".", "dark", "left", "right", "and"]
WORDS += [word for word in " ".join(COLOURS).split() if word not in WORDS]
EACH = 4  # pictures of a colour


def write_clip(folder: Path, variant: str = "clip") -> Path:
    """Return a checkpoint with its image processor and a tokenizer that ends a text with `</s>`."""
    shutil.copytree(tiny_families.source(variant), folder, dirs_exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 3)])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def picture(number: int, left: str, right: str) -> bytes:
    """Return a noisy picture of two colours, as a .png file."""
    chance = np.random.default_rng(number)
    pixels = np.empty((SIDE + number % 3, SIDE + 4, 3))
    pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] = COLOURS[left], COLOURS[right]
    noisy = (pixels + chance.normal(0, 30, pixels.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "png")
    return file.getvalue()


def samples(kind: str) -> list[dict[str, bytes]]:
    """Return contents of the files of each sample by their endings."""
    names, found = list(COLOURS), []
    for number in range(EACH * len(names)):
        left = number % len(names)
        right = left if kind == "classification" else (left + number // len(names)) % len(names)
        label = {
            "classification": ("cls", str(left).encode()),
            "multilabel": ("npy", _npy(np.isin(range(len(names)), (left, right)).astype(np.int64))),
            "retrieval": ("txt", "\n".join(_captions(number, names[left], names[right])).encode()),
        }[kind]
        found.append({"png": picture(number, names[left], names[right]), label[0]: label[1]})
    return found


def _captions(number: int, left: str, right: str) -> list[str]:
    return [f"{left} and {right}", f"a photo of {left} left and {right} right", f"picture {right}"][: 1 + number % 3]


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def write_labelled(folder: Path, kind: str = "classification", layout: str = "tar") -> Path:
    """Return labelled pictures as clip-benchmark lays them out, in two tar files or as plain files, or in a folder a
    class.
    """
    place = folder / "test"
    place.mkdir(parents=True)
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in COLOURS))
        (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\na picture of {c}.\n")
    if kind != "classification":
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    written = [(f"s{number:07d}", files) for number, files in enumerate(samples(kind))]
    if layout == "tar":
        half = len(written) // 2
        for number, part in enumerate((written[:half], written[half:])):
            with tarfile.open(place / f"{number}.tar", "w") as archive:
                for key, files in part:
                    for ending, data in files.items():
                        member = tarfile.TarInfo(f"{key}.{ending}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        (place / "nshards.txt").write_text("2\n")
        return folder
    for key, files in written:
        if layout == "plain":
            for ending, data in files.items():
                (place / f"{key}.{ending}").write_bytes(data)
        else:
            of_class = place / list(COLOURS)[int(files["cls"])].replace(" ", "_")
            of_class.mkdir(exist_ok=True)
            (of_class / f"{key}.png").write_bytes(files["png"])
    return folder
