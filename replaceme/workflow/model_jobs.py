"""Inputs and options of the jobs of models and of their calibration texts.

Methods that take `names` are given the wildcards of a job; Snakemake calls them when it plans the job.
"""

from dataclasses import dataclass
from pathlib import Path

from replaceme.calibration.images import image_files
from replaceme.calibration.tokens import PROMPT_FIELDS, TOKEN_FIELDS
from replaceme.config.calibrations import FORWARD, CalibrationConfig
from replaceme.config.command_line import to_flags
from replaceme.config.result_paths import ANSWERS, PLAIN, TOKENS, Names, at, model_at
from replaceme.config.schema import Config
from replaceme.config.units import TIMED, speed_fields
from replaceme.planning import user_files
from replaceme.planning.user_files import declared, hash_of_stamps, stamps


@dataclass(frozen=True)
class ModelJobs:
    """Inputs and options of the models and calibrations of a config, for the rules; `gpu` is 1 where models run on
    GPUs, else 0.
    """

    config: Config
    gpu: int

    @property
    def quantised(self) -> list[str]:
        """Return the names of the models whose plain weights are made."""
        return [name for name, section in self.config.models.items() if section.dequantise]

    def given(self, names: Names) -> str:
        """Return the folder, GGUF file or Hub id of a model, as configured."""
        return self.config.models[names.model].source

    def given_revision(self, names: Names) -> str:
        """Return the option of the revision of a model, as configured."""
        return to_flags(self.config.models[names.model], ("revision",))

    def given_files(self, names: Names) -> list[str | Path]:
        """Return the files of a local model, as configured, whose change reruns everything."""
        return declared(user_files.model_files(self.given(names)))

    def given_stamps(self, names: Names) -> list[str]:
        """Return sizes and times of the files of a local model, as configured."""
        return stamps(user_files.model_files(self.given(names)))

    def source(self, names: Names) -> str:
        """Return the folder or the Hub id of a model that is used: of a quantised one, that of its plain weights."""
        return model_at(at(PLAIN["record"], names)) if self._is_quantised(names) else self.given(names)

    def revision_option(self, names: Names) -> str:
        """Return the option of the revision of the model that is used."""
        return "" if self._is_quantised(names) else self.given_revision(names)

    def files(self, names: Names) -> list[str | Path]:
        """Return the files of a local model that is used, whose change reruns everything."""
        return [at(PLAIN["record"], names)] if self._is_quantised(names) else self.given_files(names)

    def file_stamps(self, names: Names) -> list[str]:
        """Return sizes and times of the files of a local model that is used; of our own making none."""
        return [] if self._is_quantised(names) else self.given_stamps(names)

    def _is_quantised(self, names: Names) -> bool:
        return self.config.models[names.model].dequantise

    def gpus(self, names: Names) -> int:
        """Return how many GPUs a job with a model takes."""
        return self.gpu * self.config.models[names.model].gpus

    def check_gpus(self, names: Names) -> int:
        """Return how many GPUs a check takes, which runs on one in float32: none of a model that needs several."""
        return self.gpu * (self.config.models[names.model].gpus == 1)

    def device_options(self, names: Names) -> str:
        """Return the options of where a model runs."""
        return f"{to_flags(self.config.models[names.model], ('gpus',))} --device {self.config.device}"

    def parts_options(self, names: Names) -> str:
        """Return the options that the costs of a model's parts depend on: lengths, and of times where it runs."""
        lengths = to_flags(self.config.speed, speed_fields(names.unit))
        return f"{lengths} {self.device_options(names)}" if names.unit in TIMED else lengths

    def forward_options(self, names: Names) -> str:
        """Return the options of the forward passes over a calibration."""
        return f"{to_flags(self._text(names), FORWARD)} {self.device_options(names)}"

    def text_files(self, names: Names) -> list[str | Path]:
        """Return the local file that a calibration is read from, if any."""
        return declared(self._text_files(names))

    def text_stamps(self, names: Names) -> list[str]:
        """Return sizes and times of a calibration's files; of a folder of images, one hash of them."""
        section = self._text(names)
        if section.prompts is not None:
            return []  # of this workflow's own making
        if section.images is not None and Path(section.images).is_dir():
            return [hash_of_stamps(image_files(Path(section.images)))]
        return stamps(self._text_files(names))

    def token_options(self, names: Names) -> str:
        """Return the options of a calibration's tokens; for answers of the model, those of the file that holds them."""
        section = self._text(names)
        if section.prompts is not None:
            section = section.answered(at(ANSWERS, names), self._prompts(names))
        return to_flags(section.at_most, TOKEN_FIELDS)

    def enough_options(self, names: Names) -> str:
        """Return the options by which tokens are enough: the tolerance, and the widest placement that is fitted."""
        criterion = self.config.criterion(names.model, names.calibration)
        return f"{to_flags(self._text(names), ('tolerance',))} {to_flags(criterion, ('placement',))}"

    def prompt_files(self, names: Names) -> list[str | Path]:
        """Return the local file that the prompts of a calibration are read from, if any."""
        return declared(user_files.text_file(self._prompts(names).dataset))

    def prompt_stamps(self, names: Names) -> list[str]:
        """Return size and time of the local file of prompts."""
        return stamps(user_files.text_file(self._prompts(names).dataset))

    def generate_options(self, names: Names) -> str:
        """Return the options of a model's answers: the source of the prompts, and the generation."""
        section = self._text(names)
        source = section.prompts_from(self._prompts(names))
        return f"{to_flags(source, PROMPT_FIELDS)} {to_flags(section.generation)}"

    def mixed_tokens(self, names: Names) -> list[str]:
        """Return the token files of the parts of a mix."""
        return [at(TOKENS, names, calibration=part) for part in self._text(names).mix]

    def mix_options(self, names: Names) -> str:
        """Return the options of a mix."""
        section = self._text(names)
        weights = " ".join(map(str, section.mix.values()))
        return f"--weights {weights} {to_flags(section, ('samples', 'seed'))}"

    def _text(self, names: Names) -> CalibrationConfig:
        return self.config.calibrations[names.calibration]

    def _prompts(self, names: Names) -> CalibrationConfig:
        return self.config.calibrations[self._text(names).prompts]

    def _text_files(self, names: Names) -> list[str]:
        section = self._text(names)
        return [at(ANSWERS, names)] if section.prompts is not None else user_files.text_file(section.dataset)
