"""lm-evaluation-harness's interface over an engine: its class is stood in for, what it calls is not."""

import abc
import dataclasses
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from posttrain_jax import chat as chats
from posttrain_jax.chat import tokenizer as tokenizers
from posttrain_jax.errors import UserError
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.stages.benchmarks import harness

LOGITS = nnx.jit(lambda decoder, tokens: decoder(tokens))


class LM(abc.ABC):
    """The harness's base class: what it sets when made, and what it wants."""

    def __init__(self):
        self._rank, self._world_size = 0, 1

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def loglikelihood_rolling(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...


@dataclasses.dataclass
class Instance:
    """A request of the harness's."""

    args: tuple


@pytest.fixture(scope="module")
def chat():
    return chats.for_family("minimax_m2", tokenizer=tokenizers.load("tiny"))


@pytest.fixture(scope="module")
def decoder(arch, make_model, chat):
    return make_model(dataclasses.replace(arch, vocab=chat.tokenizer.size))


@pytest.fixture(scope="module")
def lm(decoder, arch, chat):
    limits = Limits(
        slots=2, max_prompt=40, max_response=8, decode_chunk=4, prefill_batch=2, stop_tokens=tuple(chat.stop_tokens)
    )
    engine = Engine(dataclasses.replace(arch, vocab=chat.tokenizer.size), limits)
    module = types.ModuleType("lm_eval.api.model")
    module.LM = LM  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("lm_eval", "lm_eval.api"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        return harness.model(engine, engine.load(nnx.split(decoder)[1]), chat, rows=2)


def logprobs_of(decoder, tokens):
    """Each token's log-probability after those before, and the likeliest one."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = np.asarray(jax.nn.log_softmax(LOGITS(decoder, padded)))[0, : len(tokens)]
    return logits[np.arange(len(tokens) - 1), tokens[1:]], logits[:-1].argmax(-1)


def test_it_is_the_harnesss_class(lm):
    assert isinstance(lm, LM) and (lm._rank, lm._world_size) == (0, 1)


def test_the_likelihood_is_of_the_continuation_alone(lm, decoder, chat):
    pairs = [("one and", " two"), ("", "nine"), ("three ", "four five")]
    found = lm.loglikelihood([Instance(pair) for pair in pairs])
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        before = chat.tokenizer.encode(context.rstrip()) or [chat.stop_tokens[0]]
        whole = chat.tokenizer.encode(context + continuation)
        whole = whole if context else before + whole
        expected, best = logprobs_of(decoder, whole)
        own = slice(len(before) - 1, None)
        assert logprob == pytest.approx(float(expected[own].sum()), abs=1e-4)
        assert greedy == (best[own].tolist() == whole[len(before) :])


def test_the_likeliest_token_is_the_greedy_continuation(lm, decoder, chat):
    encode, seen = chat.tokenizer.encode, 0
    for context in ("one", "two and", "gcd", "12", "Alice", "horses", "numbers 4", "what is"):
        best = int(logprobs_of(decoder, [*encode(context), 0])[1][-1])
        text = chat.tokenizer.decode([best])
        if encode(context + text) == [*encode(context), best]:
            assert lm.loglikelihood([Instance((context, text))])[0][1]
            seen += 1
    assert seen > 1


def test_greedy_text_is_what_the_model_says_and_ends_where_asked(lm, decoder, chat):
    tokens = chat.tokenizer.encode("one and")
    for _ in range(6):
        tokens.append(int(logprobs_of(decoder, [*tokens, 0])[1][-1]))
    expected = chat.tokenizer.decode(tokens[-6:])
    [text] = lm.generate_until([Instance(("one and", {"until": [], "max_gen_toks": 6}))])
    assert text == expected and len(text) > 4
    [cut] = lm.generate_until([Instance(("one and", {"until": [text[3:5], "never"], "max_gen_toks": 6}))])
    assert cut == text.partition(text[3:5])[0]


def test_a_long_text_is_scored_in_windows(lm, decoder, chat):
    text = "the sum of one and two is three and " * 4
    tokens = chat.tokenizer.encode_with_specials(text)
    assert len(tokens) > 48, "more than one window"
    [found] = lm.loglikelihood_rolling([Instance((text,))])
    expected = logprobs_of(decoder, [chat.stop_tokens[0], *tokens[:47]])[0].sum()
    for at in range(47, len(tokens), 47):
        expected += logprobs_of(decoder, tokens[at - 1 : at + 47])[0].sum()
    assert found == pytest.approx(float(expected), abs=1e-3)


def test_conversations_are_written_as_the_family_does(lm, chat):
    asked = [{"role": "user", "content": "hello"}]
    assert lm.apply_chat_template(asked) == chat.render(asked, thinking=False, add_generation_prompt=True)


def test_without_the_harness_it_says_what_to_install(chat, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        harness.model(None, None, chat)
