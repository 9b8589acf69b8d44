"""The sections `models` and `calibrations`."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator, model_validator

from replaceme.config.base import Name, Strict
from replaceme.core.templates import template_columns
from replaceme.core.validation import shortened

Weight = Annotated[float, Field(gt=0, le=1e9)]
FORWARD = ("batch_size", "dtype", "streaming", "load_in_4bit")  # the keys that forward passes over a calibration go by
MICRO = ("micro", "micro-training")  # the embedded generator's
GENERATED = "generated"  # images of our own
ENOUGH = ("most", "tolerance")  # keys of `samples: auto`
# what a calibration that is made of others may still say
OF_ANY = {"samples", "seed", "shards", *FORWARD}
ALLOWED = {"images": OF_ANY | {"name", "revision", "split", "column", *ENOUGH}, "mix": OF_ANY}
ALLOWED["prompts"] = OF_ANY | {"tokens", "generation"}
OF_HUB = {"name", "revision", "split"}  # what a file has none of
OF_RECORDS = {"column", "conversations", "template", "pictures"}  # what running text has none of


def _samples(value: Any) -> int | str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not whole:
        raise ValueError(f"Input should be a valid integer, or auto (found {shortened(value)})")
    if whole and value < 1:
        raise ValueError(f"Input should be greater than or equal to 1 (found {value})")
    return value


def packed_alone(dataset: str) -> bool:
    """Return whether a data set is running text without columns, whose documents are joined by default."""
    return dataset in MICRO or suffix_of(dataset) == ".txt"


def meaningless(dataset: str) -> set[str]:
    """Return the keys without a meaning for a text data set of this kind."""
    if suffix_of(dataset) in (".jsonl", ".json", ".parquet"):
        return OF_HUB
    if not packed_alone(dataset):
        return set()
    return (OF_HUB - {"name"} if dataset == "micro" else OF_HUB) | OF_RECORDS


def suffix_of(dataset: str) -> str:
    """Return the ending of a file's name in small letters, `.jsonl`; empty where it has none."""
    return PurePath(dataset).suffix.lower()


class ModelConfig(Strict):
    """A model to shorten."""

    source: str = Field(
        description="Folder of a safetensors checkpoint, or a Hub id (`owner/name`); with `dequantise` a GGUF file too."
    )
    revision: str | None = Field(None, description="Hub revision: commit, tag or branch; recorded as a commit.")
    dequantise: bool = Field(
        False,
        description="Make plain weights of a quantised source first, and use those (docs/models.md): FP8, MXFP4, GPTQ, "
        "AWQ, compressed-tensors, bitsandbytes, GGUF.",
    )
    gpus: int = Field(
        1,
        ge=1,
        description="GPUs of one host over which the blocks are spread wherever the model runs (`device_map: auto` of "
        "transformers); without a GPU it makes no difference.",
    )


class GenerationConfig(Strict):
    """Options for the model's answers to the prompts of a calibration."""

    new_tokens: int = Field(512, ge=1, description="Maximum tokens of an answer.")
    temperature: float = Field(
        1.0, ge=0, description="Temperature at which tokens are drawn; 0: always the likeliest one."
    )


class CalibrationConfig(Strict):
    """The text, or for encoders the images, on which hidden states are observed."""

    dataset: str | None = Field(
        None,
        description="`micro` (the embedded generator; `micro-training`: its text to train on), a .txt, .jsonl or "
        ".parquet file, or a Hub dataset id.",
    )
    images: str | None = Field(
        None,
        description="For encoders, in place of `dataset`: a folder of images (.png, .jpg, .webp, .bmp), a Hub dataset "
        "id, or `generated` (textures and shapes).",
    )
    mix: dict[Name, Weight] | None = Field(
        None,
        min_length=1,
        description="In place of `dataset`: other calibrations by name, each with its weight; their first samples, in "
        "proportion to the weights, shuffled.",
    )
    prompts: str | None = Field(
        None,
        description="In place of `dataset`: name of a calibration of text whose prompts the model itself answers; the "
        "answers, with their prompts, are the text.",
    )
    name: str | None = Field(
        None,
        description="Hub dataset configuration, such as `sample-10BT`; of `micro`, one kind of its documents: `sums`.",
    )
    revision: str | None = Field(None, description="Hub dataset revision.")
    split: str = Field("train", description="Hub dataset split.")
    column: str | None = Field(None, description="Column that holds the text or the images; null: `text`, or `image`.")
    conversations: str | None = Field(
        None, description="Column that holds conversations; they go through the model's chat template."
    )
    template: str | None = Field(
        None, description="Text made of several columns, their names in braces: `{question} {answer}`."
    )
    pictures: str | None = Field(
        None,
        description="For models of text and pictures, beside the text: column that holds the pictures of each record, "
        "which the model's own processor puts into its prompt (docs/method/calibration.md).",
    )
    samples: Annotated[int | Literal["auto"], PlainValidator(_samples)] = Field(
        128,
        description="Number of token sequences, or of images; `auto`: as many as are enough for a fit, by the model's "
        "residual on held-out ones (docs/method/calibration.md).",
    )
    most: int = Field(8000, ge=2, description="Largest number of samples that `auto` reads.")
    tolerance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Relative change of the held-out residual by twice as many samples below which `auto` has enough.",
    )
    tokens: int = Field(1024, ge=2, description="Length of a sequence, in tokens; longer ones are truncated.")
    pack: bool | None = Field(
        None,
        description="Join documents into full sequences, each begun as a document is, instead of padding each; "
        "default: only for `micro` and .txt.",
    )
    seed: int = Field(0, ge=0, description="Seed of the generator, of the shuffle, and of the model's own answers.")
    shards: int = Field(1, ge=1, le=10_000, description="Jobs over which Gram accumulation is spread.")
    batch_size: int = Field(8, ge=1, description="Sequences, or images, per forward pass.")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"] = Field(
        "auto", description="Type of the forward pass; auto: the checkpoint's on a GPU, float32 on a CPU."
    )
    streaming: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Hold one block's weights at a time in forward passes (docs/method/large-models.md); auto: where a "
        "model does not fit the device.",
    )
    load_in_4bit: bool = Field(
        False,
        description="Round the weights of forward passes to 4 bits (NF4; needs `pip install "
        "replaceme[4bit]`); what is saved is made from the stored weights all the same.",
    )
    generation: GenerationConfig = Field(GenerationConfig(), description="Generation of the answers to `prompts`.")

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is not None:
            template_columns(template)
        return template

    @model_validator(mode="after")
    def _one_source(self) -> "CalibrationConfig":
        kinds = [kind for kind in ("dataset", "images", "mix", "prompts") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError("give either dataset (text) or images, or mix or prompts (of other calibrations)")
        [kind] = kinds
        fields = type(self).model_fields
        changed = {key for key in self.model_fields_set if getattr(self, key) != fields[key].default}
        foreign = changed - {kind} - ALLOWED.get(kind, fields.keys() - {"generation"})
        if foreign:
            verb = "takes" if kind in ("dataset", "mix") else "take"
            raise ValueError(f"{kind} {verb} no {', '.join(sorted(foreign))}; drop it")
        nothing = meaningless(self.dataset) if kind == "dataset" else set()
        if self.images == GENERATED:
            nothing = OF_HUB | OF_RECORDS
        if changed & nothing:
            raise ValueError(f"{self.source} takes no {', '.join(sorted(changed & nothing))}; drop it")
        return self

    @model_validator(mode="after")
    def _enough_of_one_source(self) -> "CalibrationConfig":
        made = next((key for key in ("mix", "prompts") if getattr(self, key) is not None), None)
        if self.automatic and made:
            raise ValueError(f"samples auto is of texts and images as they are read, not of {made}; give a number")
        defaults = {key: type(self).model_fields[key].default for key in ENOUGH}
        given = [key for key, one in defaults.items() if not self.automatic and getattr(self, key) != one]
        if given:
            raise ValueError(f"{given[0]} says when samples are enough; set `samples: auto`, or drop it")
        return self

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> "CalibrationConfig":
        given = [key for key in ("column", "conversations", "template") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[-1]} takes the place of {' and '.join(given[:-1])}; keep one of them")
        if self.pictures is not None and self.pack:
            raise ValueError("sequences with pictures are not packed, one record is one sequence; drop pack")
        if self.prompts is not None and self.generation.new_tokens >= self.tokens:
            raise ValueError(
                f"answers of {self.generation.new_tokens} tokens leave no prompt in sequences of {self.tokens}; "
                "lower generation.new_tokens or raise tokens"
            )
        return self

    @model_validator(mode="after")
    def _streamed_as_stored(self) -> "CalibrationConfig":
        if self.load_in_4bit and self.streaming == "always":
            raise ValueError("weights in 4 bits are not streamed; drop load_in_4bit or `streaming: always`")
        return self

    @property
    def source(self) -> str:
        """Source of the text or the images."""
        return self.dataset or self.images or self.prompts or ", ".join(self.mix or ())

    @property
    def automatic(self) -> bool:
        """True if samples are as many as are enough, which a model's forward passes find."""
        return self.samples == "auto"

    @property
    def at_most(self) -> "CalibrationConfig":
        """This section, with its largest number of samples in place of `auto`."""
        return self.model_copy(update={"samples": self.most}) if self.automatic else self

    @property
    def source_column(self) -> str:
        """Column of the text or of the images."""
        return self.column or ("text" if self.images is None else "image")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read."""
        if self.template is not None:
            text = template_columns(self.template)
        else:
            text = [self.conversations or self.source_column]
        return tuple(dict.fromkeys([*text, *([self.pictures] if self.pictures else [])]))

    def prompts_from(self, source: "CalibrationConfig") -> "CalibrationConfig":
        """Return the section that reads the prompts of this calibration, whose `prompts` names `source`."""
        own = ("samples", "tokens", "seed", "batch_size", "dtype")
        return source.model_copy(update={key: getattr(self, key) for key in own})

    def answered(self, path: str, source: "CalibrationConfig") -> "CalibrationConfig":
        """Return this calibration reading the file at `path`, which has the answers to the prompts of `source`."""
        own = {key: getattr(self, key) for key in OF_ANY | {"tokens"}}
        conversations = None if source.conversations is None else "messages"
        return CalibrationConfig(dataset=path, conversations=conversations, **own)
