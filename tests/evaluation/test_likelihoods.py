"""Log-likelihoods of answers: against lm-eval's own class and the model's own logits, for every family."""

import re
from types import SimpleNamespace

import pytest
import torch
from given import FULL
from tiny_families import FAMILIES, VARIANTS, source

from replaceme.evaluation import likelihoods
from replaceme.evaluation.batches import Room, first_batch, grouped, room_of
from replaceme.evaluation.likelihoods import log_likelihoods
from replaceme.evaluation.lm_eval import language_model

LONGEST = 24
TEXTS = [variant for variant in VARIANTS if FAMILIES[variant.partition(",")[0]].modality == "text"]


def queries(vocabulary, count=8, seed=0):
    """Return contexts with one answer or several, of one token or more, some equal, some longer than the model
    takes.
    """
    chance = torch.Generator().manual_seed(seed)

    def tokens(least, most):
        length = int(torch.randint(least, most + 1, (1,), generator=chance))
        return torch.randint(3, vocabulary, (length,), generator=chance).tolist()

    found = []
    for number in range(count):
        context = tokens(2, 14)
        found += [(context, tokens(1, 4)) for _ in range(number % 4 + 1)]
    return [*found, found[0], (tokens(20, 20), tokens(9, 9)), (tokens(30, 30), tokens(1, 1))]


def expected(model, given, longest=LONGEST):
    """Return the same from the logits of one whole sequence at a time, float64."""
    found = []
    for context, answer in given:
        whole = (context + answer)[-(longest + 1) :]
        with torch.no_grad():
            logits = model(torch.tensor([whole[:-1]])).logits[0, -len(answer) :].double().log_softmax(-1)
        value = logits[range(len(answer)), answer].sum().item()
        found.append((value, logits.argmax(-1).tolist() == answer))
    return found


def loaded(variant):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source(variant)).eval()


def assert_alike(found, wanted):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    values = torch.tensor([[value for value, _ in one] for one in (found, wanted)], dtype=torch.float64)
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", TEXTS)
def test_every_family(variant):
    model = loaded(variant)
    given = queries(model.config.get_text_config().vocab_size)
    # the likeliest answer is among them
    with torch.no_grad():
        given.append((given[0][0], [int(model(torch.tensor([given[0][0]])).logits[0, -1].argmax())]))
    found = log_likelihoods(model, given, LONGEST, quiet=True)
    assert_alike(found, expected(model, given))
    assert found[-1][1]


@pytest.fixture(scope="module")
def model():
    return loaded("llama")


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("room", [Room(2**20, 2**20, 2**20), Room(40, 8, 5), Room(1, 1, 1)], ids=["all", "few", "one"])
def test_batches_change_nothing(model, room, reuse, monkeypatch):
    given = queries(model.config.vocab_size, 9, seed=1)
    monkeypatch.setattr(likelihoods, "room_of", lambda *_: room)
    monkeypatch.setattr(likelihoods, "_reuses", lambda *_: reuse)
    assert_alike(log_likelihoods(model, given, LONGEST, quiet=True), expected(model, given))


def test_ends_of_like_length_share_a_pass(model, monkeypatch):
    """Whatever the padding that is allowed, and no context's cache is spent by the first of several passes."""
    given, found = queries(model.config.vocab_size, 9, seed=1), {}
    run, seen = likelihoods._run, []
    monkeypatch.setattr(likelihoods, "_run", lambda *a, **o: seen.append(o.get("cache") is not None) or run(*a, **o))
    for few, padding in ((4096, 0.25), (1, 0.25), (1, 0.0)):
        monkeypatch.setattr(likelihoods, "room_of", lambda *_, few=few: Room(2**20, 2**20, 2**20, few))
        monkeypatch.setattr(likelihoods, "PADDING", padding)
        seen.clear()
        assert_alike(log_likelihoods(model, given, LONGEST, quiet=True), expected(model, given))
        found[few, padding] = sum(seen)
    assert found[4096, 0.25] == 1 < found[1, 0.25] <= found[1, 0.0]
    tails = [(0, 0, range(length)) for length in (3, 9, 3, 5, 9)]
    much = 2**20
    for room, parts in (
        (Room(much, much, much), [[9, 9], [5], [3, 3]]),
        (Room(much, much, much, few=40), [[9, 9, 5, 3, 3]]),
        (Room(8, much, much, few=40), [[9], [9], [5, 3], [3]]),
        (Room(much, 18, much, few=40), [[9, 9], [5, 3, 3]]),
        (Room(much, much, 2, few=40), [[9, 9], [5, 3], [3]]),
    ):
        found = likelihoods._alike_in_length(tails, 7, room)
        assert [[len(one[2]) for one in part] for part in found] == parts


def shapes(monkeypatch, most=None):
    """Return the shapes of masks of all passes from here on; one over more than `most` sequences has no room."""
    run, seen = likelihoods._run, []

    def watched(model, ids, mask, *rest, **options):
        seen.append(tuple(mask.shape))
        if most and len(mask) > most:
            raise torch.cuda.OutOfMemoryError(FULL[0])
        return run(model, ids, mask, *rest, **options)

    monkeypatch.setattr(likelihoods, "_run", watched)
    return seen


def test_answers_to_one_context_run_as_many_as_there_is_room_for(model, monkeypatch):
    """As many sequences as are asked for, and in cache and logits as many tokens as fit."""
    given = [(list(range(4, 24)), [5, 4 + k]) for k in range(12)]
    seen = shapes(monkeypatch)
    wanted = log_likelihoods(model, given, 60, quiet=True)
    assert seen == [(1, 20), (12, 21)]
    much = 2**20
    for room, counts in (
        (Room(much, much, 5), [5, 5, 2]),
        (Room(21, much, much), [8, 4]),
        (Room(much, 7, much), [7, 5]),
        (Room(much, much, 1), [1] * 12),
    ):
        monkeypatch.setattr(likelihoods, "room_of", lambda *_, room=room: room)
        seen.clear()
        assert_alike(log_likelihoods(model, given, 60, quiet=True), wanted)
        assert seen == [(1, 20), *((count, 21) for count in counts)]
    monkeypatch.undo()
    seen = shapes(monkeypatch)
    assert_alike(log_likelihoods(model, given, 60, most=2, quiet=True), wanted)
    assert seen == [(1, 20), *[(2, 21)] * 6]


def test_a_full_device_splits_the_answers_to_one_context(model, monkeypatch):
    """Until they run one by one; where there is no room for one, the error is raised."""
    given = [([4, 9], [5, 6 + k]) for k in range(12)] + [([4], [5, 6])]
    wanted = log_likelihoods(model, given, 60, quiet=True)
    for most in (4, 1):
        with monkeypatch.context() as patch:
            seen = shapes(patch, most)
            assert_alike(log_likelihoods(model, given, 60, quiet=True), wanted)
            assert seen.count((most, 3)) == 12 // most
    run = likelihoods._run
    tried = []

    def no_tail(model, ids, *rest, cache=None, **options):
        if cache is not None:
            tried.append(len(ids))
            raise torch.cuda.OutOfMemoryError(FULL[0])
        return run(model, ids, *rest, cache=cache, **options)

    monkeypatch.setattr(likelihoods, "_run", no_tail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        log_likelihoods(model, given, 60, quiet=True)
    assert tried[0] == 12 and tried[-1] == 1 and tried.count(1) == 1


def test_a_pass_over_few_tokens_costs_no_more_than_over_one_where_blocks_are_small(model):
    def few(hidden):
        sizes = SimpleNamespace(hidden_size=hidden, intermediate_size=4 * hidden, vocab_size=9)
        config = SimpleNamespace(get_text_config=lambda: sizes)
        return room_of(SimpleNamespace(config=config, parameters=model.parameters)).few

    assert few(64) > 100 and few(4096) == 1


@pytest.mark.parametrize("said", FULL)
def test_a_full_device_gets_half_as_much(model, monkeypatch, said):
    given, run, refused = queries(model.config.vocab_size, 6), likelihoods._run, []

    def full(model, ids, *rest, **options):
        if ids.numel() > 60:
            refused.append(ids.numel())
            raise RuntimeError(said)
        return run(model, ids, *rest, **options)

    monkeypatch.setattr(likelihoods, "_run", full)
    assert_alike(log_likelihoods(model, given, LONGEST, quiet=True), expected(model, given))
    assert len(refused) > 1

    def always(*_, **__):
        raise RuntimeError(said)

    monkeypatch.setattr(likelihoods, "_run", always)
    with pytest.raises(RuntimeError, match=re.escape(said)):
        log_likelihoods(model, given, LONGEST, quiet=True)


def test_other_errors_of_a_pass_are_raised_at_once(model, monkeypatch):
    tried = []

    def wrong(*_, **__):
        tried.append(1)
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(likelihoods, "_run", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        log_likelihoods(model, queries(model.config.vocab_size, 6), LONGEST, quiet=True)
    assert len(tried) == 1


def test_a_shared_context_runs_once(model, monkeypatch):
    """Two passes: over the contexts, then over the tails of answers, with a row of logits for each token to predict."""
    given = [([3, 4, 5, 6, 7], [8, 9]), ([3, 4, 5, 6, 7], [9]), ([3, 4, 5, 6, 8], [8, 9, 10]), ([3, 4, 5, 6, 8], [9])]
    seen, run = [], likelihoods._run

    def watched(model, ids, mask, places, *rest, **options):
        logits, cache = run(model, ids, mask, places, *rest, **options)
        seen.append((tuple(ids.shape), tuple(mask.shape), len(logits)))
        return logits, cache

    monkeypatch.setattr(likelihoods, "_run", watched)
    assert_alike(log_likelihoods(model, given, LONGEST, quiet=True), expected(model, given))
    assert seen == [((2, 5), (2, 5), 2), ((2, 2), (2, 7), 3)]


def test_groups_and_batches():
    context = (1, 2, 3)
    given = [(context, (4, 5)), (context, (6,)), (context, (4, 5)), ((1,), (2, 3))]
    shared, single = grouped(given, 9, reuse=True)
    assert shared.answers == ((4, 5), (6,)) and shared.queries == ((0, 2), (1,)) and shared.tails == [(0, (4, 5))]
    assert (shared.sequence, shared.rows) == (context, 1) and (single.sequence, single.rows) == ((1, 2), 2)
    assert [group.queries for group in grouped(given, 9, reuse=False)] == [((0, 2),), ((1,),), ((3,),)]
    assert grouped([((1, 2, 3), (4, 5))], 3, reuse=True)[0].sequence == (
        2,
        3,
        4,
    )  # of four tokens the last is predicted
    groups = [shared, single]
    assert first_batch(groups, Room(6, 3, 2)) == groups
    for less in (Room(5, 3, 2), Room(6, 2, 2), Room(6, 3, 1)):
        assert first_batch(groups, less) == [shared]


def test_lm_evals_own_class_on_every_kind_of_request(llama):
    """Answers to one context and to several, whole texts in several windows, and text that is generated."""
    from conftest import tiny_tokenizer
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    tokenizer = tiny_tokenizer()
    ours = language_model(model, tokenizer, 4)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, backend="causal")
    words = [f"w{k}" for k in range(1, 30)]

    def asked(kind, *arguments):
        return [Instance(kind, {}, one, number, ("task", number, 1)) for number, one in enumerate(arguments)]

    several = [
        (" ".join(words[k : k + 6]), f" {words[a]} {words[a + 1]}"[: 3 * (a % 2) + 4]) for k in (0, 3) for a in range(5)
    ]
    one = [(f"{words[k]} {words[k + 2]}", f" {words[9]}") for k in range(4)]
    for given in (several, one):
        pairs = [lm.loglikelihood(asked("loglikelihood", *given), disable_tqdm=True) for lm in (ours, theirs)]
        assert_alike(*pairs)
    texts = [(" ".join(words[:number]),) for number in (2, 9, 28)]
    for lm in (ours, theirs):
        lm._max_length = 8
    found, wanted = (
        lm.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True) for lm in (ours, theirs)
    )
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=0)
    options = {"until": ["w3"], "max_gen_toks": 4, "do_sample": False}
    prompts = [(" ".join(words[:number]), options) for number in (1, 3)]
    assert (
        len({tuple(lm.generate_until(asked("generate_until", *prompts), disable_tqdm=True)) for lm in (ours, theirs)})
        == 1
    )
