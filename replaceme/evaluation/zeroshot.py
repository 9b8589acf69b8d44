"""Measure encoders of images and texts on labelled images without training, by clip-benchmark: classes and captions.

The package embeds the prompts of each class, compares images with them and looks captions up; the model is
transformers', behind the two functions that the package calls. Every value comes with one number for each item (see
`image_metrics`), so that two models are compared image by image.
"""

import contextlib
import functools
import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.calibration.images import image_processor, pixel_values
from replaceme.config.evaluations import EvaluationConfig, column
from replaceme.core import uncertainty
from replaceme.core.errors import ReplaceMeError
from replaceme.core.offline import offline
from replaceme.core.progress import progress
from replaceme.evaluation import image_metrics
from replaceme.evaluation.evaluate import average
from replaceme.evaluation.labelled_images import check_package, labelled
from replaceme.evaluation.labelled_samples import Labelled, Sample
from replaceme.models.checkpoints import names_folder
from replaceme.models.loading import ON_CPU, RunsOn, load_image_text_model, load_tokenizer, size
from replaceme.provenance.environment import hardware, versions

if TYPE_CHECKING:
    import torch


class Encoders:
    """A checkpoint of encoders of images and texts, with the model interface of clip-benchmark."""

    def __init__(self, folder: str | Path, runs_on: RunsOn = ON_CPU) -> None:
        self.folder, self.device = folder, runs_on.device
        self.model = load_image_text_model(folder, runs_on.dtype, runs_on.device, runs_on.held)
        self.processor, self.tokenizer = image_processor(folder), load_tokenizer(folder)
        self.longest = self.model.config.text_config.max_position_embeddings

    def encode_image(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Return the features of images, float32 [images, features], from pixels [images, channels, height, width]."""
        return self._features(self.model.get_image_features(pixel_values=pixels.to(self.model.dtype)))

    def encode_text(self, input_ids: "torch.Tensor") -> "torch.Tensor":
        """Return the features of texts, float32 [texts, features], from token ids [texts, tokens]."""
        # no mask: both kinds of text towers were trained on padded texts without one
        return self._features(self.model.get_text_features(input_ids=input_ids))

    def tokenize(self, texts: Sequence[str]) -> "torch.Tensor":
        """Return token ids [texts, tokens], truncated and padded to the training length of the text tower."""
        given = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt"
        )
        return given["input_ids"]

    def pixels(self, samples: Sequence[Sample]) -> "torch.Tensor":
        """Return pixel values float32 [images, channels, height, width], as preprocessor_config.json specifies."""
        import torch

        rows = [pixel_values(self.processor, sample.picture(), self.folder) for sample in samples]
        if len({row.shape for row in rows}) > 1:
            raise ReplaceMeError(f"{self.folder}: preprocessor_config.json leaves images of unequal size; crop them")
        return torch.stack(rows)

    def _features(self, output: Any) -> "torch.Tensor":
        features = getattr(output, "pooler_output", output).float().to(self.device)
        if not features.isfinite().all():
            raise ReplaceMeError(f"{self.folder}: its features are not finite; its weights or its dtype are broken")
        return features


@dataclass
class _Seen:
    """A hash and a count of the images read."""

    digest: Any
    images: int = 0

    def watch(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples, counting and hashing them."""
        for sample in samples:
            self.images += 1
            label = sample.label.tolist() if hasattr(sample.label, "tolist") else sample.label
            self.digest.update(hashlib.sha256(sample.image).digest() + repr(label).encode())
            yield sample


def evaluate_zeroshot(
    model_folder: str | Path,
    section: EvaluationConfig,
    runs_on: RunsOn = ON_CPU,
) -> dict[str, Any]:
    """Measure encoders of images and texts on labelled images and return a JSON-able record, as `evaluate` does.

    Its `tasks` are the metrics of the data sets, `<name>_<metric>`. Raises ReplaceMeError for unusable data, models
    without a text tower, broken weights, and without clip-benchmark.
    """
    import torch

    started = time.perf_counter()
    check_package()
    local = all(names_folder(one.images) for one in section.zeroshot.values())
    tasks, sources = {}, {}
    with offline() if local else contextlib.nullcontext(), torch.inference_mode():
        opened = {name: labelled(config) for name, config in section.zeroshot.items()}
        encoders = Encoders(model_folder, runs_on)
        for name, data in opened.items():
            found, sources[name] = _measured(encoders, name, data, section)
            tasks |= found
    return {
        "model": str(model_folder),
        **size(encoders.model.vision_model, model_folder),
        "tasks": tasks,
        "data": sources,
        "average": average(tasks),
        "perplexity": None,
        "seconds": time.perf_counter() - started,
        "seed": None,
        "limit": section.limit,
        "dtype": runs_on.dtype,
        "device": runs_on.device,
        "versions": versions("clip_benchmark"),
        "hardware": hardware(),
    }


def _measured(
    encoders: Encoders, name: str, data: Labelled, section: EvaluationConfig
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the metrics of a data set as tasks of a record, and a description of the data set."""
    config, limit = section.zeroshot[name], section.limit
    seen = _Seen(hashlib.sha256(repr((data.classes, data.templates)).encode()))
    samples = progress(seen.watch(itertools.islice(data.samples(), limit)), name, limit, "image")
    by = _by_captions if data.kind == "retrieval" else _by_classes
    items = by(encoders, data, _batches(samples, section.at_once), config.metrics)
    tasks = {}
    for number, (metric, values) in enumerate(items.items()):
        value, stderr = uncertainty.mean(values)
        tasks[column(name, metric)] = {
            "metric": metric,
            "value": value,
            "stderr": stderr,
            "n": len(values),
            "version": None,
            "fewshot": 0,
            "in_average": config.in_average and number == 0,
            "metrics": {metric: {"value": value, "stderr": stderr}},
            "documents": seen.digest.hexdigest(),
            "items": values,
        }
    what = {"source": data.source, "commit": data.commit, "kind": data.kind, "images": seen.images}
    return tasks, {**what, "sha256": seen.digest.hexdigest(), "classes": len(data.classes)}


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _by_classes(
    encoders: Encoders, data: Labelled, batches: Iterable[list[Sample]], metrics: Sequence[str]
) -> dict[str, list[float]]:
    """Return the items of each metric of images with one class, or with several."""
    import numpy as np
    import torch
    from clip_benchmark.metrics import zeroshot_classification as package

    pairs = ((encoders.pixels(batch), torch.as_tensor(np.array([one.label for one in batch]))) for batch in batches)
    with _no_bars(package):
        prompts = package.zero_shot_classifier(
            encoders, encoders.tokenize, list(data.classes), list(data.templates), encoders.device, amp=False
        )
        scores, labels = package.run_classification(encoders, prompts, _some(pairs, data), encoders.device, amp=False)
    return {metric: _items(metric, scores, labels) for metric in metrics}


def _items(metric: str, scores: "torch.Tensor", labels: "torch.Tensor") -> list[float]:
    if metric == "mean_average_precision":
        return image_metrics.average_precision(scores, labels)
    if metric == "mean_per_class_recall":
        return image_metrics.recall_by_class(image_metrics.hits(scores, labels, 1), labels)
    return image_metrics.hits(scores, labels, int(metric.removeprefix("acc")))


def _by_captions(
    encoders: Encoders, data: Labelled, batches: Iterable[list[Sample]], metrics: Sequence[str]
) -> dict[str, list[float]]:
    """Return the items of the recalls: for each caption whether its image is among the first k, or for each image a
    caption.
    """
    import torch
    from clip_benchmark.metrics import zeroshot_retrieval as package
    from torch.nn.functional import normalize

    images, texts, captions = [], [], []
    for batch in _some(batches, data):
        ids = encoders.tokenize([caption for sample in batch for caption in sample.label]).to(encoders.device)
        images.append(normalize(encoders.encode_image(encoders.pixels(batch).to(encoders.device)), dim=-1).cpu())
        texts.append(normalize(encoders.encode_text(ids), dim=-1).cpu())
        captions += [len(sample.label) for sample in batch]
    scores = torch.cat(texts) @ torch.cat(images).T
    pairs = torch.zeros_like(scores, dtype=torch.bool)
    pairs[torch.arange(len(scores)), torch.arange(len(captions)).repeat_interleave(torch.tensor(captions))] = True
    found = {}
    for metric in metrics:
        what, _, k = metric.partition("@")
        asked = (scores, pairs) if what.startswith("image") else (scores.T, pairs.T)
        if int(k) > asked[0].shape[1]:
            raise ReplaceMeError(f"{data.source}: {metric} among {asked[0].shape[1]}; take a smaller number")
        recall = package.batchify(package.recall_at_k, *asked, len(images[0]), encoders.device, k=int(k))
        found[metric] = (recall > 0).double().tolist()
    return found


def _some(parts: Iterable[Any], data: Labelled) -> Iterator[Any]:
    """Yield the parts unchanged; raises ReplaceMeError when there are none."""
    none = True
    for part in parts:
        none = False
        yield part
    if none:
        raise ReplaceMeError(f"{data.place}: no images in it")


@contextlib.contextmanager
def _no_bars(package: Any) -> Iterator[None]:
    """Silence the progress bars of a module of the package within the block; they would fill a log file."""
    bar = package.tqdm
    package.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        package.tqdm = bar
