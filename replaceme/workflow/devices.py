"""Find where the jobs of a workflow compute: which GPUs exist, and whether they suffice for a config."""

from dataclasses import dataclass

from replaceme.config.schema import Config
from replaceme.core.errors import ReplaceMeError
from replaceme.workflow.gpu_lock import devices, visible


@dataclass(frozen=True)
class Devices:
    """The GPUs of this machine, or of a cluster those that `--resources gpu=` grants (`granted`)."""

    config: Config
    granted: int | None = None

    @property
    def count(self) -> int:
        """Number of GPUs that `device: auto` counts on."""
        return len(visible()) if self.granted is None else self.granted

    @property
    def gpu(self) -> int:
        """1 where jobs compute on GPUs, else 0."""
        return int(self.config.device == "cuda" or (self.config.device == "auto" and self.count > 0))

    def share(self, cores: int) -> int:
        """Return the cores of one job, `cores` divided by the jobs at once: one for each GPU that jobs use, and at
        least four, so that others run beside those of few GPUs.
        """
        return max(1, cores // max(4, self.gpu * self.count))

    def check(self) -> None:
        """Raise ReplaceMeError where the config needs more GPUs than there are."""
        if self.gpu > self.count:
            raise ReplaceMeError("device: cuda: this machine shows no GPU; use `device: auto`")
        different = len(devices(visible())) if self.granted is None else self.granted
        for name, model in self.config.models.items():
            if self.gpu and model.gpus > different:
                raise ReplaceMeError(f"models.{name}.gpus: {model.gpus} asked for, {different} visible; ask for fewer")
