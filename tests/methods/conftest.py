"""A tiny model, its text and a cut, as the methods get them."""

import pytest
from given import cut_of

from replaceme.config.fits import fit_config
from replaceme.core.origin import Origin
from replaceme.fitting.passes import Passes
from replaceme.methods.fitting import fit_method
from replaceme.methods.saving import finish_found
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import family_of
from replaceme.surgery.write_checkpoint import merging

CUT = cut_of([[2, 4]], 6)


@pytest.fixture(scope="session")
def make_passes():
    """A function that loads a checkpoint for forward passes over tokens in batches of 4."""

    def make(folder, tokens, batch_size=4):
        family = family_of(read_config(folder), str(folder))
        model = load_causal_model(folder, "float32", "cpu")
        return Passes(model.base_model, family, tokens, batch_size, "float32", headed=model)

    return make


@pytest.fixture(scope="session")
def fitted(make_passes):
    """A function that fits a method: (record, what was found)."""

    def fit(folder, tokens, method, cut=CUT, **options):
        record = resolve(str(folder))
        return record, fit_method(make_passes(folder, tokens), fit_config(method=method, **options), cut, record)

    return fit


@pytest.fixture(scope="session")
def write_found():
    """A function that writes the checkpoint of what a method found."""

    def write(record, cut, found, out):
        with merging(record.folder, out) as merger:
            return finish_found(merger, record, cut, found, Origin())

    return write
