"""Calibration text to tokens: every kind of source, truncation, packing, masks, seeds and what goes wrong."""

import itertools
import json
import logging
import re
from pathlib import Path

import pytest
import torch

from replaceme.calibration import documents
from replaceme.calibration.documents import check_source, read_documents
from replaceme.calibration.samples import PassedOver
from replaceme.calibration.tokens import Tokens, calibrate, load_tokens, tokens_from_texts
from replaceme.config.calibrations import CalibrationConfig
from replaceme.micro.questions import held_out

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
EOS = 3


def config(dataset, **values):
    return CalibrationConfig(dataset=str(dataset), **{"samples": 100, "tokens": 8, **values})


def rows(tokens):
    """Return the unmasked ids of each sequence."""
    return [ids[mask].tolist() for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True)]


def ids(text):
    return [{"user": 4, "assistant": 5, "</s>": EOS}.get(word) or 6 + int(word[1:]) for word in text.split()]


@pytest.fixture
def save(tmp_path):
    """A function that writes records as one of the kinds of file."""

    def write(records, kind):
        path = tmp_path / f"text.{kind}"
        if kind == "parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(records), path)
        else:
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


# ---- sequences


def test_documents_are_truncated_or_padded_and_masked(tokenizer):
    tokens = tokens_from_texts(TEXTS, tokenizer, None, 4)
    assert tokens.input_ids.tolist() == [[7, 8, 9, 0], [10, 0, 0, 0], [11, 12, 13, 14]]
    assert tokens.mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3, [True] * 4]
    assert tokens.input_ids.dtype == torch.int64 and tokens.mask.dtype == torch.bool and tokens.count == 8


def test_masks_do_not_depend_on_the_padding_id(tokenizer):
    """A text may hold the padding word itself."""
    assert tokens_from_texts(["w1 <pad> w2", "w1"], tokenizer, None, 8).mask.tolist() == [
        [True] * 3,
        [True, False, False],
    ]


def test_a_tokenizer_without_padding(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert rows(tokens_from_texts(TEXTS, bare, None, 8)) == [ids(text) for text in TEXTS]


@pytest.mark.parametrize("samples", [1, 2, None])
def test_samples(tokenizer, samples):
    assert len(tokens_from_texts(TEXTS, tokenizer, samples, 8).input_ids) == (samples or 3)


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_no_text_at_all(tokenizer, refuses, texts):
    with refuses("no text left after dropping empty documents"):
        tokens_from_texts(texts, tokenizer, None, 8)


def test_shards_are_contiguous_and_cover_everything(make_tokens):
    tokens = make_tokens(samples=23)
    for batch_size in (1, 4, 30):
        whole = [one.input_ids for one in tokens.batches(batch_size)]
        assert torch.equal(torch.cat(whole), tokens.input_ids)
        for shards in (1, 3, 7):
            parts = [tokens.batches(batch_size, shard, shards) for shard in range(shards)]
            joined = [one.input_ids for part in parts for one in part]
            assert len(joined) == len(whole) and all(torch.equal(a, b) for a, b in zip(joined, whole, strict=True))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_first(make_tokens):
    tokens = make_tokens(samples=9)
    assert torch.equal(tokens.first(4).mask, tokens.mask[:4]) and len(tokens.first(None).mask) == 9


# ---- the token file


def test_tokens_are_read_back(make_tokens, tmp_path):
    tokens = make_tokens()
    tokens.save(tmp_path / "tokens.safetensors", {"dataset": "x"})
    again, metadata = load_tokens(tmp_path / "tokens.safetensors")
    assert torch.equal(again.input_ids, tokens.input_ids) and torch.equal(again.mask, tokens.mask)
    assert metadata == {"dataset": "x", "sha256": tokens.digest(), "unmasked_tokens": tokens.count}


def test_the_hash_covers_ids_mask_and_shape():
    a = Tokens(torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.bool))
    others = [
        Tokens(a.input_ids + 1, a.mask),
        Tokens(a.input_ids, ~a.mask),
        Tokens(a.input_ids.view(3, 2), a.mask.view(3, 2)),
    ]
    assert a.digest() not in {one.digest() for one in others}


def test_content_that_does_not_match_its_hash(make_tokens, tmp_path, refuses):
    path = tmp_path / "tokens.safetensors"
    make_tokens().save(path, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with refuses("does not match its SHA-256"):
        load_tokens(path)


def test_another_kind_of_file(tmp_path, refuses):
    from replaceme.core.files import save_tensors

    save_tensors(tmp_path / "x.safetensors", {"gram": torch.ones(2)}, {})
    with refuses("not a token file", "replaceme tokens"):
        load_tokens(tmp_path / "x.safetensors")


# ---- sources


def test_one_family_of_micro_documents(tokenizer, refuses):
    sums, every = (
        list(itertools.islice(read_documents(config("micro", name=name, seed=1), tokenizer, None), 200))
        for name in ("sums", None)
    )
    assert all(re.search("plus|minus|coins|Count", text) for text in sums) and len(set(sums) & set(every)) < 5
    items = Path(__file__).parents[2] / "resources/tasks/micro/sums.jsonl"
    contexts = [json.loads(line)["context"].removesuffix(" Answer:") for line in items.read_text().splitlines()]
    asked = [text for text in contexts if text.startswith("What is")]
    assert len(asked) > 50 and any("What is" in text for text in sums)
    assert not [text for text in sums for question in asked if question in text]
    with refuses("micro: no documents named 'sum'", "states, stories"):
        check_source(config("micro", name="sum"))


def test_micro_is_deterministic(tokenizer):
    section = config("micro", samples=4, tokens=32, seed=1)
    one, record = calibrate(section, tokenizer)
    two, _ = calibrate(section, tokenizer)
    assert one.digest() == two.digest() and one.mask.all() and one.input_ids.shape == (4, 32)
    assert record["dataset"] == "micro" and record["seed"] == 1 and record["pack"] is True
    assert calibrate(config("micro", samples=4, tokens=32, seed=2), tokenizer)[0].digest() != one.digest()


def test_text_to_train_on_shares_no_document_with_the_text_to_measure_on(tokenizer):
    trained, measured = (
        set(itertools.islice(read_documents(config(name, seed=1), tokenizer, None), 300))
        for name in ("micro-training", "micro")
    )
    assert not trained & measured and not any(held_out(text) for text in trained)
    _, record = calibrate(config("micro-training", samples=2, tokens=32), tokenizer)
    assert record["pack"] is True


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_of_records(tokenizer, save, kind):
    path = save([{"body": text, "id": k} for k, text in enumerate(TEXTS)], kind)
    tokens, record = calibrate(config(path, column="body"), tokenizer)
    assert sorted(rows(tokens)) == sorted(ids(text) for text in TEXTS)
    import hashlib

    assert record["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and record["pack"] is False


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_records_are_shuffled_by_the_seed(tokenizer, save, kind):
    path = save([{"text": f"w{k} w{k}"} for k in range(40)], kind)
    zero, again, one = (rows(calibrate(config(path, seed=seed), tokenizer)[0]) for seed in (0, 0, 1))
    assert zero == again != one and sorted(zero) == sorted(one)
    assert zero != sorted(zero), "not the order of the file"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("keys", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_conversations_go_through_the_chat_template(tokenizer, save, kind, keys):
    role, content, user, assistant = keys
    turns = [{role: user, content: "w1 w2"}, {role: assistant, content: "w3"}]
    path = save([{"messages": turns}, {"messages": []}], kind)
    tokens, _ = calibrate(config(path, conversations="messages", tokens=20), tokenizer)
    assert rows(tokens) == [ids("user w1 w2 </s> assistant w3 </s>")]


def test_a_text_file_is_cut_into_shuffled_windows(tokenizer, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n".join(f"w{k % 60}" for k in range(70)))
    expected = [[6 + (8 * window + k) % 60 for k in range(8)] for window in range(8)]  # what is left over goes
    zero, again, one = (rows(calibrate(config(path, seed=seed), tokenizer)[0]) for seed in (0, 0, 1))
    assert sorted(zero) == sorted(expected) and zero == again != one


def test_a_short_text_file_is_one_sequence(tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text("w1 w2")
    assert rows(calibrate(config(tmp_path / "book.txt"), tokenizer)[0]) == [[7, 8, EOS]]


def test_packing_closes_each_document(tokenizer, save, monkeypatch):
    monkeypatch.setattr(documents, "records", lambda section: ({"text": text} for text in [*TEXTS, ""]))
    path = save([{"text": "unused"}], "jsonl")
    tokens, record = calibrate(config(path, tokens=5, pack=True), tokenizer)
    joined = [token for text in TEXTS for token in [*ids(text), EOS]]
    assert rows(tokens) == [joined[:5], joined[5:10], joined[10:]] and record["pack"] is True


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_records_are_truncated(tokenizer, save, kind):
    path = save([{"text": "w1 w2 w3 w4 w5"}, {"text": "w6"}], kind)
    assert sorted(rows(calibrate(config(path, tokens=3), tokenizer)[0])) == [[7, 8, 9], [12]]


def putting(tokenizer, single):
    """Return the tokenizer with other tokens around a text."""
    import copy

    from tokenizers.processors import TemplateProcessing

    other = copy.deepcopy(tokenizer)
    around = [("<s>", 2), ("user", 4), ("</s>", EOS)]
    other.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=around)
    return other


@pytest.fixture
def opening(tokenizer):
    """A tokenizer that opens each document with `<s>`, as Llama's does."""
    return putting(tokenizer, "<s> $A")


def test_special_tokens_are_written_once(opening, save, monkeypatch):
    """By the tokenizer for text, also where documents are joined; by the chat template for conversations."""
    path = save([{"text": "w1 w2", "chat": [{"role": "user", "content": "w3"}]}], "jsonl")
    assert rows(calibrate(config(path), opening)[0]) == [[2, 7, 8]]
    assert rows(calibrate(config(path, conversations="chat"), opening)[0]) == [ids("user w3 </s>")]
    monkeypatch.setattr(documents, "records", lambda section: ({"text": text} for text in ["w1", "w2"]))
    assert rows(calibrate(config(path, pack=True), opening)[0]) == [[2, 7, EOS, 8, EOS]]


@pytest.fixture
def packed_texts(save, monkeypatch):
    """A data set of TEXTS in this order."""
    monkeypatch.setattr(documents, "records", lambda section: ({"text": text} for text in TEXTS))
    return save([{"text": "unused"}], "jsonl")


@pytest.mark.parametrize(
    ("single", "begin", "inside"),
    [
        ("<s> $A", [2], [[7, 8, 9, EOS], [10, EOS, 11, 12], [13, 14, 15, EOS]]),
        ("<s> $A </s>", [2], [[7, 8, 9, EOS], [10, EOS, 11, 12], [13, 14, 15, EOS]]),
        ("<s> user $A", [2, 4], [[7, 8, 9], [EOS, 10, EOS], [11, 12, 13], [14, 15, EOS]]),
        ("$A </s>", [], [[7, 8, 9, EOS, 10], [EOS, 11, 12, 13, 14], [15, EOS]]),
        ("$A", [], [[7, 8, 9, EOS, 10], [EOS, 11, 12, 13, 14], [15, EOS]]),
    ],
)
def test_each_window_begins_as_a_text_does(tokenizer, packed_texts, single, begin, inside):
    """With all that the tokenizer puts before a text, which stands nowhere else; each text is closed once."""
    found, record = calibrate(config(packed_texts, tokens=5, pack=True), putting(tokenizer, single))
    assert rows(found) == [[*begin, *part] for part in inside]
    assert record.get("begins", []) == tokenizer.convert_ids_to_tokens(begin)


def test_each_window_of_a_text_file_begins_as_a_text_does(opening, tmp_path):
    (tmp_path / "book.txt").write_text("w1 w2 w3 w4 w5 w6 w7")
    found = calibrate(config(tmp_path / "book.txt", tokens=4), opening)[0]
    assert sorted(rows(found)) == [[2, 7, 8, 9], [2, 10, 11, 12]], "what is left over goes"


@pytest.mark.parametrize("single", ["<s> $A", "$A"])
@pytest.mark.parametrize(("written", "begin"), [("<s> ", [2]), ("", [])])
def test_windows_of_conversations_begin_as_their_template_writes(tokenizer, save, monkeypatch, single, written, begin):
    chats = [[{"role": "user", "content": text}] for text in ("w1 w2", "w3")]
    monkeypatch.setattr(documents, "records", lambda section: ({"chat": chat} for chat in chats))
    one = putting(tokenizer, single)
    one.chat_template = "{{ '" + written + "' }}" + tokenizer.chat_template
    section = config(save([{"chat": []}], "jsonl"), conversations="chat", tokens=5, pack=True)
    windows = rows(calibrate(section, one)[0])
    assert all(window[: len(begin)] == begin for window in windows)
    inside = [token for window in windows for token in window[len(begin) :]]
    assert inside == ids("user w1 w2 </s> user w3 </s>")


def test_windows_of_the_generator_are_cut_as_the_embedded_model_saw_them(opening):
    found = rows(calibrate(config("micro", samples=20, tokens=16), opening)[0])
    assert {2} < {window[0] for window in found} and 2 in {token for window in found for token in window[1:]}


def test_a_text_that_brings_its_begin_token_has_it_once(opening):
    assert rows(tokens_from_texts(["<s> w1 w2", "w1 <s>"], opening, None, 8)) == [[2, 7, 8], [2, 7, 2]]


def test_a_window_has_room_for_text(tokenizer, packed_texts, refuses):
    with refuses("tokens: 2 leaves no room behind what begins a text"):
        calibrate(config(packed_texts, tokens=2, pack=True), putting(tokenizer, "<s> user $A"))


def test_empty_documents_are_dropped(tokenizer, save):
    path = save([{"text": text} for text in ["", "w1", None, " \n", "w2"]], "jsonl")
    assert sorted(rows(calibrate(config(path), tokenizer)[0])) == [[7], [8]]


UNUSABLE = {
    "text": ([None, "", " \n", ["w9"], {"a": 1}, "w1 \ud800"], "no text in column 'text'"),
    "chat": (
        [
            [{"role": "robot", "content": "w9"}],
            None,
            [],
            "w9",
            ["w9"],
            [{"role": "user"}],
            [{"role": ["user"], "content": "w9"}],
            [{"role": "user", "content": {"a": 1}}],
            [{"role": "user", "content": "refused"}],
        ],
        "a turn needs role/content or from/value, found ['content', 'role'] ('robot')",
    ),
}


@pytest.mark.parametrize("column", UNUSABLE)
def test_records_that_cannot_be_used_are_passed_over_with_a_count_and_the_first_reason(
    tokenizer, save, caplog, refuses, column
):
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if 'refused' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    strict.chat_template += tokenizer.chat_template
    values, reason = UNUSABLE[column]
    option = {"column": "text"} if column == "text" else {"conversations": "chat"}
    good = "w1" if column == "text" else [{"role": "user", "content": "w1"}]
    path = save([{column: value} for value in [*values, good, good]], "jsonl")
    tokens, _ = calibrate(config(path, **option), strict)
    assert len(tokens) == 2
    [warning] = [one.message for one in caplog.records if "passed over" in one.message]
    assert warning.startswith(f"{path}: passed over {len(values)} of its records, the first: ")
    path = save([{column: values[0]}] * 3, "jsonl")
    with refuses(f"{path}: ", reason):
        calibrate(config(path, **option), strict)


def test_turns_of_two_forms_in_one_file(tokenizer, save):
    """Parquet has null for the keys that other turns have."""
    one = [{"role": "user", "content": "w1"}]
    other = [{"from": "human", "value": b"w1", "weight": 1}]
    path = save([{"chat": one}, {"chat": other}], "parquet")
    assert rows(calibrate(config(path, conversations="chat"), tokenizer)[0]) == [ids("user w1 </s>")] * 2


def test_numbers_and_bytes_are_text(tokenizer, save):
    path = save([{"text": 0, "more": b"w1"}], "parquet")
    assert list(read_documents(config(path), tokenizer, PassedOver(""))) == ["0"]
    assert list(read_documents(config(path, template="{more} {text}"), tokenizer, PassedOver(""))) == ["w1 0"]


@pytest.mark.parametrize("name", ["book.TXT", "book.txt"])
def test_a_mark_at_the_beginning_shifts_no_window(tokenizer, tmp_path, name):
    text = "\n".join(f"w{k % 60}" for k in range(70)).encode()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "plain.txt").write_bytes(text)
    marked, plain = (calibrate(config(tmp_path / one), tokenizer)[0] for one in (name, "plain.txt"))
    assert marked.digest() == plain.digest()


MEANINGLESS = {
    "rows.jsonl": ("name", "revision", "split"),
    "rows.JSON": ("name", "revision", "split"),
    "rows.parquet": ("name", "revision", "split"),
    "book.txt": ("name", "revision", "split", "column", "conversations", "template"),
    "micro": ("revision", "split", "column", "conversations", "template"),
    "micro-training": ("name", "revision", "split", "column", "conversations", "template"),
}


@pytest.mark.parametrize("dataset", MEANINGLESS)
def test_options_that_say_nothing_about_a_source_are_refused(dataset, refuses):
    from replaceme.core.validation import validated

    values = {"split": "train[:5]", "template": "{a}"}
    for key in ("name", "revision", "split", "column", "conversations", "template"):
        given = {"dataset": dataset, key: values.get(key, "x")}
        if key in MEANINGLESS[dataset]:
            with refuses(f"{dataset} takes no {key}; drop it"):
                validated(CalibrationConfig, given, "calibrations")
        else:
            validated(CalibrationConfig, given, "calibrations")
    validated(CalibrationConfig, {"dataset": dataset, "split": "train", "name": None, "pack": False}, "calibrations")
    with refuses("conversations takes the place of column; keep one of them"):
        validated(CalibrationConfig, {"dataset": "owner/set", "column": "a", "conversations": "b"}, "calibrations")


def test_fewer_sequences_than_asked_for_are_a_warning_with_numbers(tokenizer, save, caplog):
    path = save([{"text": text} for text in TEXTS], "jsonl")
    with caplog.at_level(logging.WARNING, "replaceme"):
        calibrate(config(path, samples=50), tokenizer)
    assert "3 sequences found, 50 asked for" in caplog.text
    caplog.clear()
    calibrate(config(path, samples=3), tokenizer)
    assert not caplog.records


# ---- the Hub, on local files of the same schema


@pytest.fixture
def hub(monkeypatch, save):
    """Make `datasets.load_dataset` serve a local file for a Hub id; returns the list of calls."""
    import datasets

    path = save([{"body": f"w{k}", "messages": [{"from": "human", "value": f"w{k}"}]} for k in range(30)], "parquet")
    calls, real = [], datasets.load_dataset

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return real("parquet", data_files=str(path), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s, for threads of real downloads
    return calls


def test_hub_datasets_are_streamed_at_their_revision(tokenizer, hub):
    section = config("owner/set", name="sample", revision="abc", split="validation", column="body", samples=5)
    one, record = calibrate(section, tokenizer)
    assert hub == [(("owner/set", "sample"), {"revision": "abc", "split": "validation", "streaming": True})]
    assert one.input_ids.shape == (5, 1) and (one.input_ids >= 6).all()
    assert one.digest() == calibrate(section, tokenizer)[0].digest()
    assert {k: record[k] for k in ("dataset", "name", "revision", "split", "column")} == {
        "dataset": "owner/set", "name": "sample", "revision": "abc", "split": "validation", "column": "body",
    }  # fmt: skip


def test_hub_conversations(tokenizer, hub):
    tokens, _ = calibrate(config("owner/set", conversations="messages", samples=5), tokenizer)
    assert all(row[0] == 4 and row[2] == EOS and len(row) == 3 for row in rows(tokens))


@pytest.mark.parametrize("error", [ConnectionError("offline\nand more"), OSError(), RuntimeError("gated")], ids=repr)
def test_hub_dataset_without_network(tokenizer, monkeypatch, refuses, error):
    import datasets

    def unreachable(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with refuses("owner/set: cannot read the dataset", (str(error) or "OSError").splitlines()[0]):
        calibrate(config("owner/set"), tokenizer)


# ---- what goes wrong


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("option", ["column", "conversations"])
def test_a_missing_column_names_the_columns(tokenizer, save, refuses, kind, option):
    path = save([{"body": "w1", "id": 3}], kind)
    with refuses(str(path), "no column 'text'; its columns: body, id"):
        calibrate(config(path, **{option: "text"}), tokenizer)


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl", "none.parquet"])
def test_a_missing_file(tokenizer, tmp_path, refuses, name):
    with refuses(str(tmp_path / name), "no such file"):
        calibrate(config(tmp_path / name), tokenizer)


def test_an_unknown_kind_of_file(tokenizer, tmp_path, refuses):
    (tmp_path / "text.csv").write_text("w1")
    with refuses("unknown kind of file", ".parquet"):
        calibrate(config(tmp_path / "text.csv"), tokenizer)


BROKEN = {
    "text.txt": (b"w1 \xff", "not UTF-8 text (byte 3)"),
    "text.jsonl": (b'{"text": "w1"}\n{"text": \n', "text.jsonl: line 2: not JSON"),
    "latin.jsonl": (b'{"text": "\xff\xfe"}\n', "latin.jsonl: line 1: not UTF-8 text"),
    "text.parquet": (b"PAR1 but no more", "cannot read the dataset"),
    "empty.jsonl": (b"", ""),
    "empty.txt": (b" \n", "no text left"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tokenizer, tmp_path, refuses, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with refuses(message):
        calibrate(config(tmp_path / name), tokenizer)


CONVERSATIONS = {
    "unknown role": ([{"role": "robot", "content": "x"}], "found ['content', 'role'] ('robot')"),
    "no content": ([{"role": "user"}], "a turn needs role/content or from/value, found ['role'] ('user')"),
    "turns are text": (["w1", "w2"], "a turn needs role/content or from/value, found str"),
    "text": ("w1 w2", "column 'chat' holds str, not a list of turns"),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_conversations_of_another_form(tokenizer, save, refuses, case):
    value, message = CONVERSATIONS[case]
    with refuses(message):
        calibrate(config(save([{"chat": value}], "jsonl"), conversations="chat"), tokenizer)


def test_a_tokenizer_without_chat_template(tokenizer, save, refuses):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    path = save([{"chat": [{"role": "user", "content": "w1"}]}], "jsonl")
    with refuses("need a chat template"):
        calibrate(config(path, conversations="chat"), bare)


def test_a_chat_template_that_refuses(tokenizer, save, refuses):
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    path = save([{"chat": [{"role": "user", "content": "w1"}]}], "jsonl")
    with refuses("chat template refuses a conversation (roles must alternate)"):
        calibrate(config(path, conversations="chat"), strict)
