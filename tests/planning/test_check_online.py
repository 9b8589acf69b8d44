"""`replaceme preflight`: every thing that would be missing later is one line, with a stand-in for the Hub."""

import json
from types import SimpleNamespace

import datasets
import pytest

from replaceme.cli import main
from replaceme.config.schema import SpeedConfig, parse
from replaceme.core import disk
from replaceme.evaluation import task_index
from replaceme.planning import capacity, hub
from replaceme.planning import check_online as requisites
from replaceme.planning.outline import estimated_outline

TASK = """task: {name}
dataset_path: {path}
output_type: multiple_choice
test_split: test
doc_to_text: "x"
doc_to_choice: [a, b]
doc_to_target: {target}
"""
LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 128256, "dtype": "bfloat16",
    "max_position_embeddings": 8192,
}  # fmt: skip
SIZE_8B = 8_030_261_248


def refusal(kind):
    """Return an error of huggingface_hub as an answer with a status raises it."""
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None, status_code=404, url="x")
    return getattr(errors, kind)("403 Client Error.\n\nmore", response=response)


DATASETS_OWN = datasets.load_dataset


class Hub:
    """The content of the stand-in; `asked` lists the questions, `down` is raised in answer to all of them."""

    def __init__(self, folder):
        self.folder, self.asked, self.down = folder, [], None
        self.refused, self.revisions, self.models, self.records = {}, {}, {}, {}

    def auth_check(self, name, repo_type):
        self.asked.append(name)
        if self.down:
            raise self.down
        if name in self.refused:
            raise refusal(self.refused[name])

    def repo_info(self, name, revision, repo_type, files_metadata):
        if revision not in (None, "main"):
            raise refusal("RevisionNotFoundError")
        files = self.models.get(name, {}).get("files", {})
        siblings = [SimpleNamespace(rfilename=file, size=size) for file, size in files.items()]
        return SimpleNamespace(siblings=siblings, safetensors=None)

    def hf_hub_download(self, name, file, revision):
        path = self.folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.models[name]["config"]))
        return str(path)

    def load_dataset(self, source=None, name=None, revision=None, split=None, streaming=False, **local):
        if local.get("path") == "json":
            return DATASETS_OWN(**local, name=name)
        assert streaming
        if split != "train":
            raise ValueError(f"Unknown split {split!r}. Should be one of ['train'].")
        return iter(self.records[source])


@pytest.fixture
def fake(monkeypatch, tmp_path):
    import huggingface_hub
    import transformers.utils.hub  # noqa: F401 (it would read the stand-in's types)

    found = Hub(tmp_path / "hub")
    found.models["owner/llama"] = {
        "files": {"config.json": 1, "model-00001.safetensors": SIZE_8B, "model-00002.safetensors": SIZE_8B},
        "config": LLAMA_8B,
    }
    found.records["owner/text"] = [{"text": "w1", "chat": [{"from": "human", "value": "w2"}], "n": 1}]

    def not_here(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_here)
    monkeypatch.setattr(datasets, "load_dataset", found.load_dataset)
    monkeypatch.setattr(requisites, "device_memory", lambda device: 10**12)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**14))
    hub.repository.cache_clear()
    yield found
    hub.repository.cache_clear()


@pytest.fixture(autouse=True)
def quick_index(monkeypatch):
    """The tasks of the folder alone: lm-eval's own take long to index."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(
        task_index, "index", lambda names, include: TaskManager(include_path=[include], include_defaults=False)
    )


@pytest.fixture
def include(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, path, target in (("fine", "owner/items", "0"), ("hidden", "owner/secret", "0"), ("helped", "json", "0")):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, path=path, target=target))
    return folder


@pytest.fixture
def config(include):
    """A function that makes a config; keywords change sections, `use` the table."""

    def make(use=None, tasks=("fine",), **sections):
        raw = {
            "device": "cpu",
            "models": {"m": {"source": "owner/llama", "revision": "main"}},
            "calibrations": {"c": {"dataset": "owner/text", "revision": "main"}},
            "cuts": {"n": {"blocks": 8, "metric": "cosine"}},
            "fits": {"f": {}},
            "healings": {},
            "speed": {},
            "evaluations": {"e": {"include": str(include), "tasks": {task: {} for task in tasks}}},
            "tables": {"t": {"models": ["m"], "calibrations": ["c"], "cuts": ["n"], "fits": ["f"], "evaluation": "e"}},
        }
        for section, entries in sections.items():
            raw[section].update(entries)
        raw["tables"]["t"].update(use or {})
        return parse(raw)

    return make


def test_all_is_well(fake, config):
    assert requisites.problems(config()) == []
    assert set(fake.asked) == {"owner/llama", "owner/text", "owner/items"}


def test_a_clock_of_kernels_needs_a_gpu(fake, config, monkeypatch):
    monkeypatch.setattr(requisites, "pick_device", lambda device: "cpu")
    clock = {"device": "auto", "speed": SpeedConfig(clock="kernels")}
    line = "speed.clock: kernels are a GPU's, and this machine has none; take `wall`"
    assert line in requisites.problems(config().model_copy(update=clock))
    assert line not in requisites.problems(config({"speed": False}).model_copy(update=clock)), "nothing is timed"


def test_without_the_hub_nothing_is_asked(fake, config, llama, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "w1"}\n')
    local = config(
        {"evaluation": None},
        models={"m": {"source": str(llama)}},
        calibrations={"c": {"dataset": str(tmp_path / "x.jsonl"), "tokens": 64}},
        cuts={"n": {"blocks": 2}},
        speed={"prompt_tokens": 8},
    )
    fake.down = ConnectionError("no network")
    assert requisites.problems(local) == []
    assert fake.asked == []


def test_everything_that_is_wrong_is_told_at_once(fake, config, include):
    fake.refused |= {"owner/gated": "GatedRepoError", "owner/gone": "RepositoryNotFoundError"}
    fake.refused |= {"owner/secret": "GatedRepoError", "owner/locked": "GatedRepoError"}
    fake.models["owner/pickles"] = {"files": {"config.json": 1, "pytorch_model.bin": 9}}
    fake.models["owner/odd"] = {
        "files": {"config.json": 1, "model.safetensors": 9},
        "config": {"model_type": "unheard-of"},
    }
    models = {name: {"source": f"owner/{name}"} for name in ("gated", "gone", "pickles", "odd")}
    models["old"] = {"source": "owner/llama", "revision": "v9"}
    calibrations = {
        "locked": {"dataset": "owner/locked"},
        "split": {"dataset": "owner/text", "split": "validation"},
        "column": {"dataset": "owner/text", "column": "body"},
        "template": {"dataset": "owner/text", "template": "{text} {answer}"},
        "chat": {"dataset": "owner/text", "conversations": "n"},
        "pictures": {"images": "owner/text", "column": "n"},
        "long": {"dataset": "owner/text", "tokens": 9000},
    }
    use = {"models": ["m", *models], "calibrations": ["c", *calibrations], "cuts": ["n", "all"]}
    found = requisites.problems(
        config(use, ("fine", "hidden", "fin"), models=models, calibrations=calibrations, cuts={"all": {"blocks": 32}})
    )
    page = "https://huggingface.co"
    expected = [
        ("models.gated: owner/gated: this model is gated", f"{page}/owner/gated ", "hf auth login"),
        ("models.gone: owner/gone: no such model, or a private one",),
        ("models.pickles: owner/pickles: no model*.safetensors",),
        ("models.odd: owner/odd: model_type 'unheard-of' is not supported",),
        ("models.old: owner/llama: no revision 'v9'", f"{page}/owner/llama/commits"),
        ("calibrations.locked: owner/locked: this data set is gated", f"{page}/datasets/owner/locked"),
        ("calibrations.split: owner/text: cannot read split 'validation'", "one of ['train']"),
        ("calibrations.column: owner/text: no column 'body'; its columns: text, chat, n",),
        ("calibrations.template: owner/text: no column 'answer'",),
        ("calibrations.chat: owner/text: column 'n' holds int, not a list of turns",),
        ("calibrations.pictures: owner/text: no image in column 'n'",),
        ("calibrations.pictures on models.m: ", "a language model, which cannot be calibrated on images"),
        ("calibrations.long on models.m: ", "sequences of 9000 tokens, but the model takes 8192"),
        ("cuts.all on models.m: ", "cannot remove 32 of 32 blocks"),
        ("evaluations.e: unknown evaluation task 'fin'", "close: fine"),
        ("evaluations.e: owner/secret: this data set is gated", f"{page}/datasets/owner/secret"),
    ]
    for parts in expected:
        assert [line for line in found if all(part in line for part in parts)], (parts, found)
    assert len(found) == len(expected) and not any("\n" in line for line in found)


def test_a_silent_hub_is_one_line(fake, config):
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    response = SimpleNamespace(headers={}, request=None, status_code=503, url="x")
    for down in (
        ConnectionError("Name or service not known"), OfflineModeIsEnabled("HF_HUB_OFFLINE is set"),
        HfHubHTTPError("503 Server Error", response=response),
    ):  # fmt: skip
        fake.down, fake.asked = down, []
        hub.repository.cache_clear()
        [line] = requisites.problems(config(models={"n": {"source": "owner/other"}}, use={"models": ["m", "n"]}))
        assert line.startswith("huggingface.co: no answer (")
        assert line.endswith("not checked: owner/llama, owner/other, owner/text, owner/items")
        assert len(fake.asked) == 1, "it is asked once, not for every item"


def test_a_model_that_is_here_already_needs_no_hub(fake, config, llama, monkeypatch):
    import huggingface_hub

    fake.down = ConnectionError("no network")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(llama))
    small = {"cuts": {"n": {"blocks": 2}}, "speed": {"prompt_tokens": 8}}
    calibrations = {"c": {"dataset": "micro", "tokens": 64}}
    assert requisites.problems(config({"evaluation": None}, calibrations=calibrations, **small)) == []
    small["cuts"]["n"]["blocks"] = 6
    [line] = requisites.problems(config({"evaluation": None}, calibrations=calibrations, **small))
    assert line.startswith("cuts.n on models.m: cut: cannot remove 6 of 6 blocks"), "and is looked at"


def test_helpers_that_need_a_package(fake, config, include):
    (include / "helper.py").write_text("import package_that_is_nowhere\ndef f(doc): return 'x'\n")
    text = (include / "helped.yaml").read_text().replace('doc_to_text: "x"', "doc_to_text: !function helper.f")
    (include / "helped.yaml").write_text(text)
    [line] = requisites.problems(config(tasks=("fine", "helped")))
    assert line.startswith("evaluations.e: tasks in tasks: a package is missing")
    assert "No module named 'package_that_is_nowhere'" in line and line.endswith("install it")


def test_tasks_are_tried_as_far_as_their_data_are_here(fake, config, include):
    """A right answer and a filter of local data; of a task of the Hub, metric and filter by its YAML; two for one."""
    (include / "items.jsonl").write_text('{"right": 0}\n{"right": 2}\n')
    text = TASK.format(name="own", path="json", target="right") + "dataset_kwargs: {data_files: {test: items.jsonl}}\n"
    (include / "own.yaml").write_text(text)
    (include / "group.yaml").write_text("group: both\ntask: [fine, hidden]\n")
    tasks = {"own": {}, "fine": {"metric": "acc,nope"}, "both": {"metric": "f1"}}
    found = requisites.problems(config(evaluations={"e": {"include": str(include), "tasks": tasks}}))
    for line, part in zip(found, [
        "task 'own', item 1: the right answer 2 is none of its 2 choices", "'fine' has no metric 'acc,nope'",
        "'both' has no metric 'f1'; it has acc, acc_norm", "'fine' is asked for twice, by 'fine' and 'both'",
    ], strict=True):  # fmt: skip
        assert line.startswith("evaluations.e: evaluation task ") and part in line
    (include / "items.jsonl").write_text('{"right": 0}\n')
    tasks = {"own": {}, "fine": {"metric": "acc,none"}}
    assert requisites.problems(config(evaluations={"e": {"include": str(include), "tasks": tasks}})) == []


def test_data_of_the_hub_that_are_seen_and_measured(fake, config, include, caplog):
    fake.records["owner/items"] = [{"text": "w1"}]
    assert requisites.problems(config(calibrations={"c": {"dataset": "owner/items", "split": "train"}})) == []
    assert not caplog.records
    seen = {"c": {"dataset": "owner/items", "split": "test"}}
    requisites.problems(config(calibrations=seen))
    assert [
        entry.getMessage().startswith("calibrations.c: owner/items is what task 'fine'") for entry in caplog.records
    ] == [True]


def test_packages_of_our_own(monkeypatch):
    import importlib.metadata

    assert list(requisites.missing_packages()) == []
    wanted = ["torch>=2", "surely-not-there>=1; python_version > '3'", "optional; extra == 'x'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    assert list(requisites.missing_packages()) == [
        "package surely-not-there is not installed; run `pip install -r requirements.txt`"
    ]


# ---- room


def big(**changes):
    return estimated_outline("owner/llama", LLAMA_8B | changes, 2 * SIZE_8B, None)


def test_an_outline_from_the_config_is_near_the_model_itself(llama):
    """Against the headers of a checkpoint, and Llama 3 8B, whose blocks have 218,112,000 parameters."""
    from replaceme.models.checkpoints import open_checkpoint
    from replaceme.planning.outline import outline_of

    checkpoint = open_checkpoint(llama)
    exact = outline_of(checkpoint, "x")
    guess = estimated_outline("x", checkpoint.config, 4 * exact.parameters, None)
    assert guess.parameters == pytest.approx(exact.parameters, rel=0.05)
    assert guess.block_parameters == pytest.approx(exact.block_parameters, rel=0.05)
    assert big().parameters == SIZE_8B and big().block_parameters[0] == pytest.approx(218_112_000, rel=1e-4)
    assert exact.shortened_bytes(2) == pytest.approx(
        exact.file_bytes - 4 * sum(checkpoint.block_parameters()[:2]), rel=0.05
    )


def memory(config, gigabytes, device="cuda"):
    return capacity.memory_problems(config, {"m": big()}, int(gigabytes * 1e9), device)


def test_memory(config):
    """16.1 GB of weights in bfloat16, with a margin of a quarter 20.1."""
    assert memory(config(), 21) == []
    [line] = memory(config(), 19)
    assert line == (
        "evaluations.e on models.m: owner/llama: the whole model in bfloat16 takes about 20.1 GB, the GPU has 19.0; "
        "raise `gpus`"
    )
    assert memory(config(models={"m": {"source": "owner/llama", "gpus": 2}}), 11) == []
    [line] = memory(config(evaluations={"e": {"tasks": {"fine": {}}, "dtype": "float32"}}), 21)
    assert "in float32 takes about 40.2 GB" in line and line.endswith("use `dtype: bfloat16`")
    beside = {
        "evaluations": {"e": {"tasks": {"fine": {}}, "divergence": "d"}},
        "calibrations": {"d": {"dataset": "micro"}},
    }
    [line] = memory(config(**beside), 40)
    assert "the divergence, which holds the shortened model beside the whole, in bfloat16 takes about 40.2 GB" in line
    plain = {"evaluation": None}
    assert memory(config(plain), 1) == [], "forward passes are streamed where they have to be"
    [line] = memory(config(plain, calibrations={"c": {"dataset": "micro", "streaming": "never"}}), 19)
    assert line.startswith("calibrations.c on models.m: ") and line.endswith("use `streaming: auto`")
    [line] = memory(config({**plain, "calibrations": ["own"]}, calibrations={"own": {"prompts": "c"}}), 19)
    assert line.startswith("calibrations.own on models.m: ") and "not streamed" in line
    [line] = memory(config(plain, cuts={"n": {"blocks": 8, "metric": "loss"}}), 19)
    assert line.startswith("cuts.n on models.m: ") and "use another metric" in line
    other = {"fits": {"f": {"method": "slicegpt"}}}
    assert memory(config(plain, **other), 21) == []
    [line] = memory(config(plain, **other), 19)
    assert line.startswith("fits.f on models.m: ") and "method slicegpt is not streamed" in line
    [line] = memory(config(plain, **other, models={"m": {"source": "owner/llama", "gpus": 2}}), 21)
    assert line.startswith("fits.f on models.m: ") and line.endswith("on one device; use `gpus: 1`")
    # 24 candidates of 8 blocks: a Gram for each start and two matrices for each, 72 times 134 MB
    [line] = memory(config(plain, cuts={"n": {"blocks": 8}}), 9)
    assert "cosine_after_fit holds 72 matrices, 9.7 GB" in line


def test_disk(config, monkeypatch, tmp_path):
    """Two merged models of 24 of 32 blocks, 12.6 GB each, one of which is there already, and the download."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=28_000_000_000))
    two = config({"fits": ["f", "g"]}, fits={"g": {"transform": "identity"}})
    healing = {"train": "full", "text": "c", "steps": 1, "learning_rate": 0.1}
    healed = config({"healings": ["h"]}, healings={"h": healing})
    whole = {"owner/llama": 2 * SIZE_8B}

    def lines(of, downloads=whole, at_once=9):
        return capacity.disk_problems(of, {"m": big()}, downloads, tmp_path / "results", tmp_path / "cache", at_once)

    assert lines(two, {}) == []
    room = "1 models to download 16.1 GB, 28.0 GB are free"
    for of, done in ((two, "model"), (healed, "healed/h/model")):
        folder = tmp_path / "results/m/c/n/f" / done
        folder.mkdir(parents=True)
        [line] = lines(of)
        assert line.startswith(f"disk of {tmp_path}"), line
        assert f": 2 merged models 25.1 GB, {room}" in line, "a folder is no model yet"
        (folder / "replaceme.json").touch()
        [line] = lines(of)
        assert "1 merged models 12.6 GB" in line
        (folder / "replaceme.json").unlink()
    passing = config({"fits": ["f", "g"], "keep_models": False}, fits={"g": {"transform": "identity"}})
    assert ": 2 merged models" in lines(passing)[0] and ": 1 merged models" in lines(passing, at_once=1)[0]


# ---- the step


def test_the_step(fake, config, capsys, tmp_path, monkeypatch):
    import io

    path = tmp_path / "my.yaml"
    path.write_text(config().model_dump_json(exclude_unset=True))
    assert main(["preflight", str(path)]) == 0
    assert capsys.readouterr().out == "preflight: fine (1 models, 1 tables)\n"
    fake.refused["owner/llama"] = "GatedRepoError"
    hub.repository.cache_clear()
    monkeypatch.setattr("sys.stdin", io.StringIO(path.read_text()))
    assert main(["preflight", "-"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("replaceme: error: models.m: owner/llama: this model is gated")
