"""Inputs and options of the jobs that measure models, and of those that heal them."""

import functools
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from replaceme.config.command_line import to_flags
from replaceme.config.evaluations import evaluation_flags
from replaceme.config.healings import DISTILLATION, TrainingConfig
from replaceme.config.result_paths import MODEL, TOKENS, Names, at
from replaceme.config.schema import Config
from replaceme.evaluation.labelled_images import files_of as labelled_files
from replaceme.planning.user_files import declared, hash_of_stamps, stamps, task_files

TRAINING = tuple(TrainingConfig.model_fields)


@dataclass(frozen=True, eq=False)  # by identity, as what is cached is of one config
class MeasureJobs:
    """Inputs and options of the evaluations, speeds and healings of a config, for the rules."""

    config: Config

    @functools.cached_property
    def speed_options(self) -> str:
        """Options of a measurement of speed."""
        return to_flags(self.config.speed)

    @functools.cache  # noqa: B019 (there is one of these in a process)
    def _options(self, name: str) -> str:
        return evaluation_flags(self.config.evaluations[name])

    def evaluation_options(self, names: Names) -> str:
        """Return the options of an evaluation."""
        return self._options(names.evaluation)

    @functools.cache  # noqa: B019 (there is one of these in a process)
    def _task_files(self, name: str) -> list[str | Path]:
        return declared(task_files(self.config.evaluations[name].include))

    def task_files(self, names: Names) -> list[str | Path]:
        """Return the user's own task files that an evaluation reads."""
        return self._task_files(names.evaluation)

    @functools.cache  # noqa: B019 (there is one of these in a process)
    def _stamps(self, name: str) -> dict[str, Any]:
        section = self.config.evaluations[name]
        found = {key: labelled_files(images) for key, images in section.zeroshot.items()}
        images = {key: hash_of_stamps(files) for key, files in found.items() if files}
        tasks = stamps(task_files(section.include))
        return images | ({"task files": tasks} if tasks else {})

    def evaluation_stamps(self, names: Names) -> dict[str, Any]:
        """Return sizes and times of the local files of an evaluation: tasks, and one hash for each set of images."""
        return self._stamps(names.evaluation)

    def divergence_tokens(self, names: Names) -> str:
        """Return the token file of the text that a divergence is measured on."""
        return at(TOKENS, names, calibration=self.config.evaluations[names.evaluation].divergence)

    def seen_tokens(self, names: Names) -> list[str]:
        """Return the token files of the texts that a model was made with: of its fit, and of its healing if any."""
        return [at(TOKENS, names), *([self.healing_tokens(names)] if names.get("healing") else [])]

    def divergence_options(self, names: Names) -> str:
        """Return the options of a divergence."""
        return to_flags(self.config.evaluations[names.evaluation], ("dtype",))

    def healing_tokens(self, names: Names) -> str:
        """Return the token file of the text that a healing trains on."""
        return at(TOKENS, names, calibration=self.config.healings[names.healing].text)

    def training_options(self, names: Names) -> str:
        """Return the options of the training of a healing."""
        original = "".join(f" --original {quote(path)}" for path in self.original(names))
        return to_flags(self.config.healings[names.healing], TRAINING) + original

    def original(self, names: Names) -> list[str]:
        """Return the record of the model that a healing learns from, if it does."""
        distilled = self.config.healings[names.healing].objective == DISTILLATION
        return [at(MODEL, names)] if distilled else []
