"""The model card's metadata is what the Hub reads: valid YAML, a Hub id or none, the licence of the source."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard, metadata_load

import replaceme
from replaceme.config.fits import FitConfig
from replaceme.surgery.model_card import licence_of, model_card

SOURCE = {"source": "owner/name", "revision": "0" * 40}
LICENCE = {"license": "other", "license_name": "gemma: terms", "license_link": "LICENSE"}


def card(source=SOURCE, licence=None):
    cut = {"groups": [[2, 4]], "blocks": 2, "num_blocks": 6, "metric": "cosine"}
    fit, versions = {"solver": "cholesky", "tokens": 10}, {"replaceme": "1", "torch": "2"}
    provenance = {"source": source, "cut": cut, "fit": fit, "versions": versions, "placement": "mlp"}
    return model_card(provenance, licence or {})


def test_metadata_of_a_model_of_the_hub(tmp_path):
    (tmp_path / "README.md").write_text(card(licence=LICENCE))
    assert metadata_load(tmp_path / "README.md") == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "replaceme"],
        "base_model": "owner/name",
        **LICENCE,
    }
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.base_model == "owner/name" and loaded.text.startswith("# owner/name, 2 blocks shorter")


def test_a_folder_is_no_base_model():
    data = ModelCard(card(source={"source": "resources/micro", "revision": None})).data.to_dict()
    assert "base_model" not in data and "license" not in data and data["library_name"] == "transformers"


FRONT = {
    "card": ("---\nlicense: mit\nlanguage: en\n---\n# A model\n", {}, {"license": "mit"}),
    "config": (None, {"license": "mit"}, {"license": "mit"}),
    "card before config": ("---\nlicense: apache-2.0\n---\n", {"license": "mit"}, {"license": "apache-2.0"}),
    "named otherwise": (
        "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
        {},
        {"license": "other", "license_name": "own", "license_link": "LICENSE"},
    ),
    "several": ("---\nlicense: [mit, apache-2.0]\n---\n", {}, {}),
    "no metadata": ("# A model\n", {}, {}),
    "not a mapping": ("---\n- license\n---\n", {}, {}),
    "broken": ("---\nlicense: [\n---\n", {}, {}),
    "neither": (None, {}, {}),
}


@pytest.mark.parametrize("case", FRONT)
def test_the_licence_of_the_source(case, tmp_path):
    front, config, expected = FRONT[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if front is not None:
        (tmp_path / "README.md").write_text(front)
    assert licence_of(tmp_path) == expected


def test_the_licence_goes_with_the_model(llama, texts, tmp_path):
    """Its text as a file, its name in the new card; the old card is not copied."""
    source = shutil.copytree(llama, tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\nthe old card")
    for name in ("LICENSE.txt", "USE_POLICY.md", "NOTICE"):
        (source / name).write_text(name)
    fit = FitConfig(transform="identity")
    replaceme.prune(source, texts=texts, blocks=1, fit=fit, out=tmp_path / "out", verify=False)
    assert all((tmp_path / "out" / name).read_text() == name for name in ("LICENSE.txt", "USE_POLICY.md", "NOTICE"))
    written = ModelCard.load(tmp_path / "out" / "README.md")
    assert written.data.license == "mit" and "the old card" not in written.content
