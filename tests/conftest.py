"""Tiny models shared by all tests: saved checkpoints with a WordLevel tokenizer, made once for each session."""

import gc
import os

# before the hub libraries are imported, whatever was set before: no test may use the network
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # threads take longer than reading a tiny model does

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# the libraries' objects all stay, so that looking for garbage among them costs a tenth of the time
gc.set_threshold(100_000, 50, 100)
os.fsync = lambda descriptor: None  # thousands of syncs, of which only a machine that loses its power would tell
STARTUP = Path(__file__).parent / "startup"
GPUS = Path("/dev/nvidiactl")
# files in the order in which the workers get them, all others after them: what others wait for, then what takes long
EARLY = (
    "workflow/test_crashes.py", "kernels/test_interpreter.py", "verification/test_verify.py",
    "models/test_families.py", "test_repeats.py", "test_healing.py", "workflow/test_kinds.py",
    "workflow/test_reruns.py", "workflow/test_run.py", "test_block_placement.py",
    "transforms/test_gradient.py", "workflow/test_devices.py", "chaos/test_sample.py", "reports/test_figures.py",
)  # fmt: skip
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
WORDS = [f"w{i}" for i in range(60)]
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
SIZES = {
    "vocab_size": 66,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


def pytest_configure(config):
    """Let Python programs that the tests start import from one server (see `startup/warm.py`)."""
    if hasattr(config, "workerinput"):  # of pytest-xdist, which has what its parent has set
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
    if GPUS.exists():  # the server's libraries look at CUDA, which forks cannot use then
        return
    folder = Path(tempfile.mkdtemp(prefix="replaceme-warm-"))
    snapshot(folder / "code")
    command = [sys.executable, STARTUP / "warm.py", folder / "socket", folder / "code"]
    given = os.environ | ONE_THREAD | {"HF_HOME": str(folder / "huggingface")}  # read when the libraries are imported
    server = subprocess.Popen(command, env=given, stdin=subprocess.DEVNULL)
    os.environ["REPLACEME_TEST_WARM"] = str(folder / "socket")

    def stop():
        server.kill()
        server.wait()
        shutil.rmtree(folder)

    config.add_cleanup(stop)


def snapshot(folder):
    """Copy the workflow and the package, laid out as it is installed, with what is compiled of it."""
    root = STARTUP.parents[1]
    for name in ("rules", "profiles", "replaceme"):
        shutil.copytree(root / name, folder / name)
    shutil.copytree(root / "kernels", folder / "replaceme/kernels", dirs_exist_ok=True)
    shutil.copy2(root / "Snakefile", folder)


def pytest_collection_modifyitems(items):
    """Put long files first, so that no worker is left alone with one (with `--no-loadscope-reorder`)."""
    places = {str(STARTUP.parent / name): number for number, name in enumerate(EARLY)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


def pytest_collection_finish():
    """Leave out of the search for garbage what is there from now on."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The same bits on every machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_values_on_meta():
    """Models are loaded on the meta device first: a tenth of the time went into drawing values that are not there."""
    import torch

    reset = torch.nn.Linear.reset_parameters
    torch.nn.Linear.reset_parameters = lambda self: None if self.weight.is_meta else reset(self)
    yield
    torch.nn.Linear.reset_parameters = reset


def tiny_tokenizer(chat_template=None):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", "user", "assistant", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **special)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer(CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory):
    """A function that saves a tiny random Llama and returns its folder.

    `edit` changes the model before it is saved, `shard` is the largest size of a shard; the rest goes to the config.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(dtype="float32", edit=None, shard="50GB", seed=0, **config):
        folder = tmp_path_factory.mktemp("llama")
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **config})).to(getattr(torch, dtype))
        for name, parameter in model.named_parameters():
            if "norm" in name:  # not all ones, so that a forgotten or misplaced norm shows
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if edit is not None:
            with torch.no_grad():
                edit(model)
        model.generation_config.temperature = 0.7
        model.generation_config.do_sample = True
        model.save_pretrained(folder, max_shard_size=shard)
        tiny_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def llama(make_llama):
    """A Llama of 6 blocks, hidden size 16, float32, in one file."""
    return make_llama()


@pytest.fixture(scope="session")
def sharded(make_llama):
    """The same weights in several shards."""
    return make_llama(shard="10KB")


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """A Gemma3 text model: sandwich norms, `layer_types`, tied embeddings."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    sizes = {**SIZES, "tie_word_embeddings": True, "num_hidden_layers": 6, "head_dim": 8, "sliding_window": 8}
    kinds = [["sliding_attention", "full_attention"][k in (2, 5)] for k in range(6)]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, layer_types=kinds))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tokens():
    """A function that makes calibration tokens: sequences of unequal length, padded on one side with `filler`."""
    import torch

    from replaceme.calibration.tokens import Tokens

    def make(samples=24, longest=20, side="right", filler=0, seed=0, extra=0):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(longest // 3, longest + 1, (samples,), generator=generator)
        lengths[0] = longest
        input_ids = torch.full((samples, longest + extra), filler)
        mask = torch.zeros(samples, longest + extra, dtype=torch.bool)
        for row, length in enumerate(lengths.tolist()):
            ids = torch.randint(6, 66, (length,), generator=generator)
            columns = slice(0, length) if side == "right" else slice(longest + extra - length, None)
            input_ids[row, columns], mask[row, columns] = ids, True
        return Tokens(input_ids, mask)

    return make


@pytest.fixture(scope="session")
def texts():
    """Texts of unequal length in the words of the tiny tokenizer."""
    import random

    words = random.Random(0)
    return [" ".join(words.choices(WORDS, k=words.randint(4, 30))) for _ in range(40)]


@pytest.fixture
def refuses():
    """A function that expects a ReplaceMeError of `lines` lines (default one) that holds all the given parts."""
    from contextlib import contextmanager

    from replaceme.core.errors import ReplaceMeError

    @contextmanager
    def expect(*parts, lines=1):
        with pytest.raises(ReplaceMeError) as caught:
            yield
        message = str(caught.value)
        assert len(message.splitlines()) == lines, message
        for part in parts:
            assert part in message

    return expect


@pytest.fixture(scope="session")
def blocks_of():
    """A function that loads the blocks of a checkpoint as the steps do: (base model, family)."""
    from replaceme.models.checkpoints import read_config
    from replaceme.models.loading import load_base_model
    from replaceme.models.model_config import family_of

    def load(folder, dtype="float32"):
        return load_base_model(folder, dtype, "cpu"), family_of(read_config(folder), str(folder))

    return load


@pytest.fixture(scope="session")
def brute_rows():
    """An oracle made with plain transformers, one unpadded sequence at a time.

    `brute_rows(folder, tokens, dtype)` gives float64 (hidden [blocks, tokens, d], mlp_output [blocks, tokens, d],
    indices of each sequence's last token): hidden states before the final norm by `output_hidden_states`, except the
    last block's, which transformers normalises and a hook must catch. Made once for the same folder and tokens; not to
    be changed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    found = {}

    def rows(folder, tokens, dtype="float64"):
        given = (folder, dtype, tuple(map(tuple, tokens.input_ids.tolist())), tuple(map(tuple, tokens.mask.tolist())))
        if given not in found:
            found[given] = capture(folder, tokens, dtype)
        return found[given]

    def capture(folder, tokens, dtype):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        layers, seen = model.model.layers, {}
        names = "post_feedforward_layernorm" if hasattr(layers[0], "post_feedforward_layernorm") else "mlp"
        for k, layer in enumerate(layers):
            part = getattr(layer, names)
            part.register_forward_hook(lambda m, i, output, k=k: seen.__setitem__(k, output))
        model.model.norm.register_forward_hook(lambda m, inputs, o: seen.__setitem__("last", inputs[0]))
        hidden, outputs, ends = [], [], []
        for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
            with torch.no_grad():
                states = model(ids[mask][None], output_hidden_states=True).hidden_states
            hidden.append(torch.stack([*states[1:-1], seen["last"]])[:, 0].double())
            outputs.append(torch.stack([seen[k] for k in range(len(layers))])[:, 0].double())
            ends.append((ends[-1] if ends else -1) + int(mask.sum()))
        return torch.cat(hidden, 1), torch.cat(outputs, 1), torch.tensor(ends)

    return rows
