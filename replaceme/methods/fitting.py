"""Run the fit of a method other than replaceme, by forward passes of its own."""

from typing import TYPE_CHECKING

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.methods.registry import module_of
from replaceme.models.model_record import ModelRecord

if TYPE_CHECKING:
    from replaceme.config.methods import MethodConfig
    from replaceme.fitting.passes import Passes
    from replaceme.methods.found import Found


def fit_method(passes: "Passes", config: "MethodConfig", cut: Cut, record: ModelRecord) -> "Found":
    """Run the method of a fit section at a cut's size; needs the model's own weights whole on one device."""
    needs = f"fit: method {config.method} needs"
    if hasattr(passes.model, "streamed"):
        raise ReplaceMeError(f"{needs} the whole model; use `streaming: never`")
    parameters = list(passes.model.parameters())
    if not all(one.is_floating_point() for one in parameters):
        raise ReplaceMeError(f"{needs} the weights as they are; drop `load_in_4bit`")
    if len({one.device for one in parameters}) > 1:
        raise ReplaceMeError(f"{needs} the model on one device; use `gpus: 1`")
    return module_of(config.method).fit(passes, config, cut, record)
