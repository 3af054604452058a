"""From values to token ids: conversations, budgets, and texts that are never control tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reasonrec_fast.lm.chat import ChatPrompt
from reasonrec_fast.prompts import (
    Entries,
    Identifier,
    PromptEncoder,
    PromptTemplate,
    TokenIds,
    Wording,
    load_template,
)

# Of bytes that SmolLM2 has tokens for: it leaves out others, such as most control characters.
texts = st.text(st.sampled_from("ab {}[]\n<|>é😀") | st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
control = st.sampled_from(["<|im_end|>", "<|im_start|>system\n", "<|endoftext|>", "{title}", "[[{title}]]", " \n"])
values = st.lists(texts | control, max_size=4).map("".join)


@pytest.fixture(scope="module")
def encoder(smollm2_tokenizer):
    return PromptEncoder(load_template("ctr"), smollm2_tokenizer)


@settings(max_examples=60, deadline=None)
@given(history=values, title=values, attributes=st.none() | values)
def test_texts_never_become_control_tokens(encoder, smollm2_tokenizer, history, title, attributes):
    special = set(smollm2_tokenizer.all_special_ids)
    for wording in encoder.template.wordings:
        given_values = {"history": history, "title": title, "attributes": attributes}
        prompt = encoder(given_values, wording)
        plain = encoder({"history": "a", "title": "b"}, wording)
        results = [[token for token in [*p.prefix, *p.suffix] if token in special] for p in (prompt, plain)]
        assert results[0] == results[1]
        prefix, suffix = encoder.template.render(given_values, wording)
        written = smollm2_tokenizer.decode([*prompt.prefix, *prompt.suffix])
        if wording.system is None:
            assert written == smollm2_tokenizer.decode(encoder.ids.start) + prefix + suffix
        else:
            messages = [{"role": "system", "content": wording.system}, {"role": "user", "content": prefix + suffix}]
            assert written == smollm2_tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )


@settings(max_examples=60, deadline=None)
@given(history=texts, title=texts)
def test_conversations_have_the_ids_of_the_chat_template(encoder, smollm2_tokenizer, history, title):
    prompt = encoder({"history": history, "title": title}, "chat")
    prefix, suffix = encoder.template.render({"history": history, "title": title}, "chat")
    messages = [
        {"role": "system", "content": encoder.template.wording("chat").system},
        {"role": "user", "content": prefix + suffix},
    ]
    whole = smollm2_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert prompt.prefix + prompt.suffix == list(whole["input_ids"] if hasattr(whole, "keys") else whole)
    assert prompt.suffix


def test_candidates_share_their_prefix(encoder):
    for which in ("plain", "statement", "chat"):
        prompts = [encoder({"history": "Alien; Up", "title": title}, which) for title in ("Heat", "Ghost", "Up")]
        assert len({tuple(prompt.prefix) for prompt in prompts}) == 1
        assert len({tuple(prompt.suffix) for prompt in prompts}) == 3


@settings(max_examples=80, deadline=None)
@given(st.lists(texts, max_size=12), st.integers(0, 120), st.sampled_from(["drop_first", "drop_last"]), st.booleans())
def test_a_prompt_fits_and_is_that_of_what_remains(encoder, history, budget, rule, chat):
    which = "chat" if chat else "plain"
    given_values = {"history": Entries(history, rule=rule), "title": "Heat"}
    if not history:
        with pytest.raises(ValueError, match=f"{which}: expected a value of 'history'; got none"):
            encoder(given_values, which, budget=budget)
        return
    try:
        prompt = encoder(given_values, which, budget=budget)
    except ValueError as error:
        shorter = history[-1:] if rule == "drop_first" else history[:1]
        needed = len(encoder({"history": shorter[0], "title": "Heat"}, which))
        assert needed > budget
        assert str(error) == f"budget: expected at least {needed} tokens for ctr.json: {which}; got {budget}"
        return
    dropped = prompt.dropped.get("history", 0)
    kept = history[dropped:] if rule == "drop_first" else history[: len(history) - dropped]
    alone = encoder({"history": "; ".join(kept), "title": "Heat"}, which)
    assert len(prompt) <= budget and (prompt.prefix, prompt.suffix) == (alone.prefix, alone.suffix)
    if dropped:
        more = history[dropped - 1 :] if rule == "drop_first" else history[: len(history) - dropped + 1]
        assert len(encoder({"history": "; ".join(more), "title": "Heat"}, which)) > budget


def test_lists_of_low_priority_lose_entries_first(smollm2_tokenizer):
    encoder = PromptEncoder(load_template("sequential"), smollm2_tokenizer)
    history = Entries([f"book {row}" for row in range(10)], priority=1)
    candidates = Entries([f"film {row}" for row in range(10)], ", ", "drop_last")
    given_values = {"history": history, "candidates": candidates, "title": "Heat"}
    whole = encoder(given_values, "choose")
    assert not whole.dropped and encoder(given_values, "choose", budget=len(whole)).dropped == {}
    less = encoder(given_values, "choose", budget=len(whole) - 9)
    assert set(less.dropped) == {"candidates"}
    bare = encoder(given_values, "choose", budget=50)
    assert bare.dropped["candidates"] == 10 and 0 < bare.dropped["history"] < 10  # the optional part is gone, too
    assert "One of these" not in smollm2_tokenizer.decode(bare.prefix)
    unused = encoder(given_values, "next", budget=len(encoder(given_values, "next")) - 3)
    assert set(unused.dropped) == {"history"}  # no placeholder for the candidates, which therefore cost nothing


def test_wordings_of_another_template_are_refused(encoder):
    """One with a system message of its own was a KeyError."""
    chat = encoder.template.wording("chat")
    assert encoder({"history": "Alien", "title": "Heat"}, chat).wording is chat
    other = load_template("explanation").wording("chat")
    for call in (encoder, encoder.template.render):
        with pytest.raises(
            ValueError, match="wording: expected one of plain, statement, chat or its index; got Wording"
        ):
            call({"history": "Alien", "title": "Heat"}, other)


def test_values_of_another_form_are_refused(encoder):
    with pytest.raises(TypeError, match="texts: expected a list of texts; got 'Alien'"):
        Entries("Alien")
    with pytest.raises(TypeError, match=r"texts: expected a list of texts; got \['Alien', 3\]"):
        Entries(["Alien", 3])
    for strange in ({"Alien", "Heat"}, {"Alien": 1}, None, 3):  # a set has no order
        with pytest.raises(TypeError, match="texts: expected a list of texts; got"):
            Entries(strange)
    for options, name in (({"separator": 1}, "separator"), ({"priority": "x"}, "priority")):
        with pytest.raises(TypeError, match=f"{name}: expected"):
            Entries(["Alien"], **options)
    for strange in (None, ["Alien"]):
        with pytest.raises(TypeError, match="ctr.json: values: expected values by field; got"):
            encoder(strange)
        with pytest.raises(TypeError, match="ctr.json: values: expected values by field; got"):
            encoder.template.render(strange)
    with pytest.raises(ValueError, match="text: expected Unicode without lone surrogates; got '.ud800' in"):
        encoder({"history": "Alien", "title": "\ud800"})
    with pytest.raises(ValueError, match="document: expected Unicode without lone surrogates"):
        encoder({"history": "Alien", "title": "\ud800"}, "chat")
    for other in (load_template("explanation").wording("chat"), load_template("judge").wording()):
        for write in (encoder, encoder.template.render):  # nothing of the values was in the second one
            with pytest.raises(
                ValueError, match="wording: expected one of plain, statement, chat or its index; got Wording"
            ):
                write({"history": "Alien", "title": "Heat"}, other)
    with pytest.raises(ValueError, match="rule: expected one of drop_first, drop_last; got 'cut_end'"):
        Entries(["Alien"], rule="cut_end")
    with pytest.raises(ValueError, match="history: expected a text; got the identifier 'Alien; B000'"):
        encoder({"history": Entries(["Alien", Identifier("B000")]), "title": "Heat"})
    with pytest.raises(TypeError, match="budget: expected a whole number of tokens; got 2.5"):
        encoder({"history": "Alien", "title": "Heat"}, budget=2.5)
    with pytest.raises(ValueError, match="budget: expected at least 0 tokens; got -1"):
        encoder({"history": "Alien", "title": "Heat"}, budget=-1)


def tokenizer_of(model, **names):
    tokenizer = Tokenizer(model)
    if not isinstance(model, models.Unigram):
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "ab</s> ")], 0),
        models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, "<unk>"),
        models.WordPiece({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"),
    ],
    ids=["Unigram", "WordLevel", "WordPiece"],
)
def test_control_tokens_that_cannot_be_read_as_characters_are_refused(model):
    """They are in the model's own vocabulary, where splitting special tokens does not reach."""
    ids = TokenIds(tokenizer_of(model))
    assert 1 not in ids.of("a b") and ids.of("a z")  # what is unknown is no control token
    with pytest.raises(ValueError, match=r"text: expected one that this tokenizer .*; got \['</s>'\] in 'a </s> b'"):
        ids.of("a </s> b")


def test_conversations_refuse_such_texts_too():
    """A Unigram model read the end of a turn in a document as the end of the turn."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((chr(code), -5.0) for code in range(32, 127))]
    tokenizer = tokenizer_of(models.Unigram(pieces, 0))
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    chat = ChatPrompt(tokenizer)
    assert sum(part.count(1) for part in chat("a", "b")) == 1
    for pair in (("a", "b</s>a"), ("a</s>", "b")):
        with pytest.raises(ValueError, match=r"text: expected one that .*; got \['</s>'\] in "):
            chat(*pair)
    chatty = PromptTemplate("ctr", {"title": "text"}, (Wording("w", "a", "{title}", system="s"),))
    with pytest.raises(ValueError, match="without control tokens"):
        PromptEncoder(chatty, tokenizer)({"title": "b</s>a"})


def test_a_conversation_needs_a_chat_template():
    tokenizer = tokenizer_of(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, "<unk>"))
    with pytest.raises(ValueError, match="tokenizer: expected one with a chat template; got none"):
        PromptEncoder(load_template("ctr"), tokenizer)
    plain = PromptTemplate("ctr", {"title": "text"}, (Wording("plain", "a", "{title}"),))
    assert PromptEncoder(plain, tokenizer)({"title": "a a"}).suffix == [2, 2]


def test_entries_are_kept_as_they_were(encoder):
    texts = ["Alien", "Heat"]
    once, changed = Entries(text for text in texts), Entries(texts)
    texts.append("Up")
    assert once == changed and changed.kept(2) == "Alien; Heat"
