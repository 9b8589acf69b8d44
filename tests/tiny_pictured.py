"""Tiny random models of text and pictures with their processors, and a tokenizer that knows a few words."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

MARKS = ("<image>", "<start_of_image>", "<end_of_image>")
WORDS = ("<pad>", "<unk>", "<s>", "</s>", "user", "assistant", *(f"w{k}" for k in range(40)), *MARKS)
IDS = {word: k for k, word in enumerate(WORDS)}
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }} {% for part in turn['content'] %}{% if part['type'] == 'image' %}"
    "MARK {% else %}{{ part['text'] }} {% endif %}{% endfor %}</s> {% endfor %}"
)


def words():
    """Return a tokenizer of WORDS."""
    made = Tokenizer(models.WordLevel(IDS, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_marks(made)


def with_marks(tokenizer):
    """Return a tokenizer as processors take it, with the tokens that stand for pictures added where it lacks them."""
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    named = dict(zip(("image_token", "boi_token", "eoi_token"), MARKS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=named, **special)


def gemma3(tokenizer):
    """Return a model and its processor, by a tokenizer `with_marks`."""
    image, begin, end = tokenizer.convert_tokens_to_ids(MARKS)
    config = Gemma3Config(
        text_config={**TEXT, "vocab_size": len(tokenizer), "sliding_window": 8, "sliding_window_pattern": 2},
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4, image_token_index=image, boi_token_index=begin, eoi_token_index=end,
    )  # fmt: skip
    images, template = Gemma3ImageProcessor(size={"height": 16, "width": 16}), TEMPLATE.replace("MARK", MARKS[1])
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(
        images, tokenizer, chat_template=template, image_seq_length=4
    )


def llava(tokenizer):
    """Return a model and its processor, by a tokenizer `with_marks`."""
    config = LlavaConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "model_type": "llama"}, vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids(MARKS[0]),
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
    )  # fmt: skip
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    options = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = TEMPLATE.replace("MARK", MARKS[0])
    return LlavaForConditionalGeneration(config), LlavaProcessor(images, tokenizer, chat_template=template, **options)
