"""Our model class for lm-eval: log-likelihoods of `likelihoods`, every text begun as its tokenizer begins texts, once.

lm-eval puts the token for the beginning before a text whose log-likelihood it rolls over, although many tokenizers have
put one there: the token would stand twice, and its own log-likelihood, which is not of text, would be counted. Where a
tokenizer puts a token behind a text, the answer to a prompt would lose its first. Tokenizers without any special token
work as far as nothing depends on one.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.evaluation.likelihoods import log_likelihoods
from replaceme.models.added_tokens import added_tokens

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENCODED_AT_ONCE = 256  # texts that a thread encodes in one call
LONGEST_SHOWN = 60  # characters of an answer, in a message


class LanguageModel(HFLM):
    """A loaded model and its tokenizer; config.json supplies special tokens that the tokenizer lacks.

    `batch_size` prompts are continued at once; of answers that are scored `most` run in a pass (None: what fits).
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        most: int | None = None,
    ) -> None:
        self.most = most
        self._encoded: dict[str, list[int]] = {}
        self.before, self.after = added_tokens(tokenizer)
        bos, eos = special_tokens(tokenizer, model)
        self._eos = eos
        if tokenizer.pad_token_id is None and tokenizer.unk_token_id is None and tokenizer.eos_token_id is None:
            # lm-eval would add a token, which has no row in the embedding; padding is masked, whatever it is
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0 if eos is None else eos)
        prefix = next((one for one in (bos, eos, *self.before[-1:]) if one is not None), None)
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal", prefix_token_id=prefix
        )

    @property
    def eot_token_id(self) -> int | None:
        """Token for the end, None where there is none."""
        return self._eos

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str | None:
        """Decode tokens; None, which stops no answer, for the end of a model without end token."""
        return None if tokens is None else super().tok_decode(tokens, skip_special_tokens)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Encode a text as lm-eval does, without the tokens that the tokenizer appends."""
        if add_special_tokens is None and string in self._encoded:
            ids = self._encoded[string]
        elif self.prefix_token_id is None:
            ids = self.tokenizer.encode(string)
        else:
            ids = super().tok_encode(string, add_special_tokens)
        if self.after and add_special_tokens is None and ids[-len(self.after) :] == self.after:
            ids = ids[: -len(self.after)]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def check(self, requests: "Iterable[Instance]") -> None:
        """Raise ReplaceMeError where a request has no token to predict from."""
        if self.prefix_token_id is not None:
            return
        for request in requests:
            empty = request.request_type == "loglikelihood" and request.args[0] == ""
            if empty or request.request_type == "loglikelihood_rolling":
                raise ReplaceMeError(
                    f"evaluation task {request.task_name!r}: the first token of "
                    f"{'an answer to an empty prompt' if empty else 'a text'} has nothing before it to be predicted "
                    "from, as neither the tokenizer nor config.json has a bos or eos token; name one in "
                    "tokenizer_config.json"
                )

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return lm-eval's log-likelihoods of answers, of which the texts are encoded together, each once."""
        texts = {text for request in requests for text in _encoded_by_lm_eval(*request.args)}
        self._encoded = self._encode_all(sorted(texts))
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self._encoded = {}

    def _encode_all(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Return the ids of the texts that `tok_encode` would encode with the tokenizer's own defaults."""
        begin = None if self.prefix_token_id is None else self.tokenizer.decode(self.prefix_token_id)
        if self.add_bos_token is not None:
            return {}
        plain = [text for text in texts if not (begin and text.startswith(begin))]
        return dict(zip(plain, encoded(self.tokenizer, plain), strict=True)) if plain else {}

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Return log-likelihoods of whole texts, each token given those before it, in windows of the model's length."""
        windows = [
            (number, None, *one) for number, request in enumerate(requests) for one in self._windows(*request.args)
        ]
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens([one[1:] for one in windows], disable_tqdm)
        for (number, *_), (loglikelihood, _) in zip(windows, found, strict=True):
            totals[number] += loglikelihood
        return totals

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """Return pairs of context and predicted tokens; the first context is the tokenizer's prefix."""
        before = self.before or [self.prefix_token_id]
        ids = super().tok_encode(text)
        if ids[: len(before)] == before:
            ids = ids[len(before) :]
        longest = self.max_length + 1 - len(before)
        found = get_rolling_token_windows(ids, prefix_token=before[-1], max_seq_len=longest, context_len=1)
        windows = [make_disjoint_window(one) for one in found]
        return [(before, windows[0][1]), *windows[1:]] if windows else []

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return lm-eval's log-likelihoods, after a check of all requests at once instead of batch by batch."""
        longest = self.max_length
        for texts, _, answer in requests:
            if not 0 < len(answer) <= longest:
                shown = printable(texts[1] if texts else "")[:LONGEST_SHOWN]
                raise ReplaceMeError(
                    f"evaluation: the answer {shown!r} is {len(answer)} tokens long, from 1 to {longest} can "
                    "be measured; mend the task's data"
                )
        queries = [(context, answer) for _, context, answer in requests]
        return log_likelihoods(self.model, queries, longest, self.most, quiet=disable_tqdm)


def encoded(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts, by as many threads as torch has: fast tokenizers run beside Python."""
    import torch

    def ids(part: Sequence[str]) -> list[list[int]]:
        return tokenizer(part, return_attention_mask=False)["input_ids"] if part else []

    first = ids(texts[:1])  # which sets the tokenizer up, so that threads only read it
    starts = range(1, len(texts), ENCODED_AT_ONCE)
    parts = [texts[start : start + ENCODED_AT_ONCE] for start in starts]
    with ThreadPoolExecutor(torch.get_num_threads() if tokenizer.is_fast else 1) as threads:
        return [*first, *chain.from_iterable(threads.map(ids, parts))]


def _encoded_by_lm_eval(context: str, answer: str) -> tuple[str, ...]:
    """Return the texts that lm-eval encodes for a request: the context without spaces at its end, and all of it."""
    return (context.rstrip(), context + answer) if context else ()


def special_tokens(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> tuple[int | None, int | None]:
    """Return the begin and end tokens of the tokenizer, or of config.json where the tokenizer has neither."""
    found = tokenizer.bos_token_id, tokenizer.eos_token_id
    if found != (None, None):
        return found
    config, known = model.config.get_text_config(), []
    for key in ("bos_token_id", "eos_token_id"):
        one = getattr(config, key, None)
        one = one[0] if isinstance(one, list | tuple) and one else one
        known.append(one if isinstance(one, int) and 0 <= one < len(tokenizer) else None)
    return known[0], known[1]
