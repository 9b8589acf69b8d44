"""Rotary positions are spelt in both ways, and transformers reads the config as before."""

import json
import shutil

import pytest
import torch
from given import cut_of
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from replaceme.models.families import FAMILIES
from replaceme.surgery.fold import merge
from replaceme.surgery.old_spellings import with_old_spellings
from replaceme.transforms.closed_form import fit_identity

SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_the_old_spelling():
    rope = {"rope_theta": 5e5, "original_max_position_embeddings": 64, **SCALED}
    config = with_old_spellings({"model_type": "llama", "text_config": {"rope_parameters": rope}})["text_config"]
    assert config["rope_theta"] == 5e5 and config["rope_parameters"] == rope
    assert config["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}
    nested = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}}
    nested["sliding_attention"] = {"rope_theta": 1e4, "rope_type": "default"}
    config = with_old_spellings({"model_type": "gemma3_text", "rope_parameters": nested})
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    neox = {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5}}
    assert with_old_spellings(neox).items() >= {"rotary_emb_base": 7.0, "rotary_pct": 0.5}.items()
    old = {"model_type": "llama", "rope_theta": 5.0}
    assert with_old_spellings(old) == old and "rope_scaling" not in with_old_spellings({"rope_parameters": {}})


@pytest.mark.parametrize("scaled", [False, True])
def test_transformers_reads_the_same(scaled):
    seen = 0
    for name, family in FAMILIES.items():
        if family.modality != "text" or (scaled and name == "phi3"):  # which takes one kind of scaling alone
            continue
        rope = getattr(CONFIG_MAPPING[name](), "rope_parameters", None)
        if not rope:
            continue
        rope = json.loads(json.dumps(rope))
        for one in [value for value in rope.values() if isinstance(value, dict)][:1] or [rope]:
            one.update({"rope_theta": 12345.0} | (SCALED | {"original_max_position_embeddings": 32} if scaled else {}))
        config = {"model_type": name, "rope_parameters": rope}
        before = AutoConfig.for_model(**json.loads(json.dumps(config)))
        after = AutoConfig.for_model(**json.loads(json.dumps(with_old_spellings(config))))
        assert after.rope_parameters == before.rope_parameters, name
        seen += 1
    assert seen > 15


def test_a_shortened_folder_has_both(llama, tmp_path):
    config = json.loads((llama / "config.json").read_text())
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    (source / "config.json").write_text(
        json.dumps(config | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}})
    )
    merge(source, cut_of([(2, 4)], 6), [fit_identity(hidden_size=16)], tmp_path / "out", {})
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 77.0
    ids = torch.arange(20)[None]
    logits = []
    for dropped in ((), ("rope_theta",), ("rope_parameters",)):
        kept = {key: value for key, value in written.items() if key not in dropped}
        (tmp_path / "out/config.json").write_text(json.dumps(kept))
        logits.append(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(ids).logits)
    assert logits[0].equal(logits[1]) and logits[0].equal(logits[2])
