"""Cuts that begin between the attention and the MLP of a block and end so in another."""

import family_checks
import pytest
from family_checks import EXACT, HALVES, VARIANTS

from replaceme.models.model_config import check_halves, family_of

# without a middle: attention and MLP side by side, or not known
WHOLE = {"bloom", "cohere", "cohere2", "falcon", "falcon, as 11B", "gpt_neox", "gpt_neox, one after the other", "gptj",
         "phi", "stablelm, side by side", "vit", "deit", "dinov2", "dinov2, with SwiGLU", "clip_vision_model",
         "siglip_vision_model", "clip", "siglip"}  # fmt: skip


@pytest.mark.parametrize("variant", [one for one in VARIANTS if one not in WHOLE])
def test_the_saved_model_is_the_original_without_the_halves(variant):
    assert family_checks.middle_difference(variant) < EXACT
    for placement in ("mlp", "down_proj"):
        if family_checks.takes(variant, placement=placement):
            assert family_checks.halves_difference(variant, placement) < EXACT
