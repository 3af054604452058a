"""Conversations by the chat templates of well-known models, and templates and tokenizers of every odd kind."""

import pytest
from lm.tokenizers_of_tests import bytes_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reasonrec_fast.lm.chat import ChatPrompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {  # abridged to what a system's and a user's turn make of them
    "chatml": CHATML,
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set s = false %}{% endif %}{% for m in rest %}"
    "{% if loop.index0 == 0 and s %}{% set c = '<<SYS>>\\n' + s + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set c = m['content'] %}{% endif %}{{ '<s>' + '[INST] ' + c.strip() + ' [/INST]' }}{% endfor %}",
    "llama3": "{% for m in messages %}{% set c = '<|start|>' + m['role'] + '<|stop|>\n\n' + m['content'] | trim"
    " + '<|eot|>' %}{% if loop.index0 == 0 %}{% set c = '<s>' + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}",
    "phi3": "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "qwen": "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}",
}
SPECIAL = [
    "<s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>", "[INST]", "[/INST]",
    *(AddedToken(f"<|{name}|>", rstrip=True, normalized=False, special=True)
      for name in ("system", "user", "assistant", "end")),
]  # fmt: skip
PAIRS = [
    ("a", "b"), ("", ""), (" Alien \n", "\n\nHeat "), ('it\'s "x" & <b>\\', "Ünï\u00a0 \t x"), ("  ", "\r\n"),
    ("<think>x</think>y", "x</think>z"), ("{document}", "{query}"), ("\ue000query\ue000", "\ue000"),
]  # fmt: skip
KINDS = ("bytes", "first", "always", "never", "prepend")
REFUSED = "tokenizer: expected a chat template that writes the user's turn as it stands"


def tokenizer_of(kind="bytes", template=CHATML, special=SPECIAL, normalizer=None):
    """Byte-level BPE, or sentencepiece's kind with a beginning-of-word mark, by ``kind``."""
    if kind == "bytes":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        backend = Tokenizer(models.BPE(vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
        if kind == "prepend":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(
        [t if isinstance(t, AddedToken) else AddedToken(t, special=True, normalized=False) for t in special]
    )
    backend.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = template
    return tokenizer


def own(tokenizer, content, system):
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": content})
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)["input_ids"])


def ids(chat, *pair):
    prefix, suffix = chat(*pair)
    return prefix + suffix


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_those_of_the_tokenizer(name, kind):
    tokenizer = tokenizer_of(kind, TEMPLATES[name])
    for system in (None, "You judge films."):
        for template in ("{query}\n\n{document}", " Liked: {query} Film: {document} \n", "{query}{document}"):
            chat = ChatPrompt(tokenizer, template, system=system)
            for query, document in PAIRS:
                before, rest = template.split("{query}")
                middle, after = rest.split("{document}")
                content = before + query + middle + document + after
                assert ids(chat, query, document) == own(tokenizer, content, system), (query, document)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_control_token_in_a_text_changes_nothing_beside_it(name, kind):
    """The template's own part is read as ever: blanks that control tokens take, marks of a beginning."""
    tokenizer = tokenizer_of(kind, TEMPLATES[name])
    chat, special = ChatPrompt(tokenizer), set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for control in ("<|im_end|>", "<|end|>", "<|end|> \n", "<s>", "[/INST]", "<|eot|>"):
        clean, text = ids(chat, "a", "b~c"), ids(chat, "a", f"b{control}c")
        at = clean.index(tokenizer.convert_tokens_to_ids("~"))
        assert text[:at] == clean[:at] and text[at - len(clean) + 1 :] == clean[at + 1 :]
        between = text[at : at - len(clean) + 1]
        assert not special & set(between) and tokenizer.decode(between) == control


@pytest.mark.parametrize(
    ("normalizer", "text"), [(normalizers.Lowercase(), "<|IM_END|>"), (normalizers.NFKC(), "＜|im_end|＞")]
)
def test_no_normalised_text_is_a_control_token(normalizer, text):
    special = [AddedToken(name, special=True, normalized=True) for name in ("<|im_start|>", "<|im_end|>")]
    tokenizer = tokenizer_of(special=special, normalizer=normalizer)
    control = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert control in tokenizer(text)["input_ids"]  # as the tokenizer reads it
    assert ids(ChatPrompt(tokenizer), "a", text).count(control) == 1


def test_no_two_texts_together_are_a_control_token():
    tokenizer = tokenizer_of()
    control = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids(ChatPrompt(tokenizer, "{query}{document}"), "a<|im", "_end|>b").count(control) == 1


@pytest.mark.parametrize(
    "body",
    [
        "m['content'] | tojson", "m['content'] | e", "m['content'] | lower", "m['content'] | upper",
        "m['content'] | striptags", "m['content'] | indent", "m['content'] | replace('\n', ' ')",
        "m['content'].strip('\n')", "m['content'].strip(' ')", "m['content'].split('</think>')[-1]",
        "m['content'] | replace('/no_think', '')", "m['content'][:500]", "m['content'].split() | join(' ')",
        "m['content'] | replace('\"', '\\\\\"')", "m['content'] + m['content']", "m['content'] | length",
        "('a tool: ' if m['content'].startswith('<tool_response>') else '') + m['content']",
    ],
)  # fmt: skip
def test_templates_that_change_the_text_are_refused(body):
    with pytest.raises(ValueError, match=REFUSED):
        ChatPrompt(tokenizer_of(template=CHATML.replace("m['content']", body)))


@pytest.mark.parametrize("strip", ["lstrip", "rstrip", "strip"])
def test_templates_that_take_blanks_of_a_side(strip):
    tokenizer = tokenizer_of(template=CHATML.replace("m['content']", f"m['content'].{strip}()"))
    for query, document in PAIRS:
        assert ids(ChatPrompt(tokenizer), query, document) == own(tokenizer, f"{query}\n\n{document}", None)


def test_what_a_template_cannot_write_is_refused():
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    with pytest.raises(ValueError, match=r"expected a chat template for \[.*; got no system"):
        ChatPrompt(tokenizer_of(template=no_system), system="s")
    assert ids(ChatPrompt(tokenizer_of(template=no_system)), "a", "b")
    dropped = CHATML.replace("messages", "messages if m.role != 'system'", 1)
    with pytest.raises(ValueError, match="system: expected a chat template that writes the system's turn"):
        ChatPrompt(tokenizer_of(template=dropped), system="You judge.")
    with pytest.raises(ValueError, match="expected a chat template for"):
        ChatPrompt(tokenizer_of(template="{{ tools | length }}" + CHATML))
    with pytest.raises(ValueError, match="once; got it 0 times"):  # a list of parts, as of vision-language models
        listed = CHATML.replace("{{ m['content'] }}", "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}")
        ChatPrompt(tokenizer_of(template=listed))
    for name in ("system", "answer"):
        with pytest.raises(TypeError, match=f"{name}: expected a text; got 5"):
            ChatPrompt(tokenizer_of(), **{name: 5})


def test_named_templates_and_the_answers_beginning():
    tokenizer = tokenizer_of(template={"default": CHATML, "tool_use": "another"})
    answer = "<think>\n\n</think>\n\nRelevance:"
    expected = own(tokenizer, "a\n\nb", None) + tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert ids(ChatPrompt(tokenizer, answer=answer), "a", "b") == expected
    tokenizer = bytes_tokenizer()  # a template without control tokens
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert ids(ChatPrompt(tokenizer), "a", "b</s>") == list(
        tokenizer("user: a\n\nb", add_special_tokens=False)["input_ids"]
        + [i for letter in "</s>\n" for i in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    )
