"""The sections `models` and `calibrations`."""

from typing import Literal

from pydantic import Field, model_validator

from replaceme.config.base import Strict

FORWARD = ("batch_size", "dtype", "streaming", "load_in_4bit")  # the keys that forward passes over a calibration go by


class ModelConfig(Strict):
    """A model to shorten."""

    source: str = Field(description="Folder of a safetensors checkpoint, or a Hub id (`owner/name`).")
    revision: str | None = Field(None, description="Hub revision: commit, tag or branch; recorded as a commit.")
    gpus: int = Field(
        1,
        ge=1,
        description="GPUs of one host over which the blocks are spread wherever the model runs (`device_map: auto` of "
        "transformers); without a GPU it makes no difference.",
    )


class CalibrationConfig(Strict):
    """The text, or for encoders the images, on which hidden states are observed."""

    dataset: str | None = Field(
        None, description="`micro` (the embedded generator), a .txt, .jsonl or .parquet file, or a Hub dataset id."
    )
    images: str | None = Field(
        None,
        description="For encoders, in place of `dataset`: a folder of images (.png, .jpg, .webp, .bmp), a Hub dataset "
        "id, or `generated` (textures and shapes).",
    )
    name: str | None = Field(None, description="Hub dataset configuration, such as `sample-10BT`.")
    revision: str | None = Field(None, description="Hub dataset revision.")
    split: str = Field("train", description="Hub dataset split.")
    column: str | None = Field(None, description="Column that holds the text or the images; null: `text`, or `image`.")
    conversations: str | None = Field(
        None, description="Column that holds conversations; they go through the model's chat template."
    )
    samples: int = Field(128, ge=1, description="Number of token sequences, or of images.")
    tokens: int = Field(1024, ge=2, description="Length of a sequence, in tokens; longer ones are truncated.")
    pack: bool | None = Field(
        None,
        description="Join documents into full sequences instead of padding each; default: only for `micro` and .txt.",
    )
    seed: int = Field(0, ge=0, description="Seed of the generator or of the shuffle.")
    shards: int = Field(1, ge=1, le=10_000, description="Jobs over which Gram accumulation is spread.")
    batch_size: int = Field(8, ge=1, description="Sequences, or images, per forward pass.")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"] = Field(
        "auto", description="Type of the forward pass; auto: the checkpoint's on a GPU, float32 on a CPU."
    )
    streaming: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether forward passes hold one block's weights at a time (docs/method.md); auto: where a model "
        "does not fit the device.",
    )
    load_in_4bit: bool = Field(
        False,
        description="Whether forward passes run with weights rounded to 4 bits (NF4; needs `pip install "
        "replaceme[4bit]`); what is saved is made from the stored weights all the same.",
    )

    @model_validator(mode="after")
    def _text_or_images(self) -> "CalibrationConfig":
        if (self.dataset is None) == (self.images is None):
            raise ValueError("give either dataset (text) or images")
        given = self.model_fields_set & {"tokens", "pack", "conversations"}
        if self.images is not None and given:
            raise ValueError(f"images take no {', '.join(sorted(given))}; drop it")
        return self

    @model_validator(mode="after")
    def _streamed_as_stored(self) -> "CalibrationConfig":
        if self.load_in_4bit and self.streaming == "always":
            raise ValueError("weights in 4 bits are not streamed; drop load_in_4bit or `streaming: always`")
        return self

    @property
    def source(self) -> str:
        """Where the text or the images come from."""
        return self.dataset if self.images is None else self.images

    @property
    def source_column(self) -> str:
        """The column of the text or of the images."""
        return self.column or ("text" if self.images is None else "image")
