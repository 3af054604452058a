"""From a template and values to the token ids of a request, within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from reasonrec_fast.lm.chat import ChatPrompt
from reasonrec_fast.prompts.budget import check_budget
from reasonrec_fast.prompts.template import Identifier, PromptTemplate, Wording, check_values
from reasonrec_fast.prompts.tokens import TokenIds

EntryRule = Literal["drop_first", "drop_last"]


@dataclass(frozen=True)
class Entries:
    """A value that is a list, such as a history, and that may lose entries so that its prompt fits the budget.

    Attributes:
        texts: the entries in their order; none of them stands for no value.
        separator: between two entries.
        rule: which entries are dropped: ``"drop_first"`` (of a history, the oldest) or ``"drop_last"``.
        priority: lists of the lowest priority lose entries first; of the same priority, the last field of the template.

    Raises:
        TypeError: one text in place of a list, or entries that are no texts.
        ValueError: an unknown rule.
    """

    texts: Sequence[str]
    separator: str = "; "
    rule: EntryRule = "drop_first"
    priority: int = 0

    def __post_init__(self) -> None:
        ordered = isinstance(self.texts, Iterable) and not isinstance(self.texts, str | Set | Mapping)
        texts = tuple(self.texts) if ordered else ()  # by position; later changes of a list do not reach it
        if not ordered or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts: expected a list of texts; got {self.texts!r}")
        if not isinstance(self.separator, str):
            raise TypeError(f"separator: expected a text; got {self.separator!r}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise TypeError(f"priority: expected a whole number; got {self.priority!r}")
        object.__setattr__(self, "texts", texts)
        if self.rule not in get_args(EntryRule):
            raise ValueError(f"rule: expected one of {', '.join(get_args(EntryRule))}; got {self.rule!r}")

    def kept(self, count: int) -> str | None:
        """The text of ``count`` entries; None for 0.

        >>> Entries(["Alien", "Heat", "Up"]).kept(2)
        'Heat; Up'
        """
        if not count:
            return None
        start = len(self.texts) - count if self.rule == "drop_first" else 0
        kept = self.texts[start : start + count]
        text = self.separator.join(kept)
        return Identifier(text) if any(isinstance(entry, Identifier) for entry in kept) else text


Value: TypeAlias = str | Entries | None


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids.

    Attributes:
        prefix: token ids that all candidates of a query share.
        suffix: token ids of one candidate.
        wording: that was written.
        dropped: entries that lists lost, by field; without the lists that lost none.
    """

    prefix: list[int]
    suffix: list[int]
    wording: Wording
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)


class PromptEncoder:
    """Writes the prompts of a template as token ids; safe to call from any number of threads.

    A wording with a system message becomes a conversation by the tokenizer's chat template, up to where the model
    answers; its ids are those of ``apply_chat_template``. Any other becomes its prefix and its suffix, each encoded by
    itself, behind the beginning-of-sequence token. Values, prefixes and suffixes write no control tokens; a system
    message is its author's, and is read as ``apply_chat_template`` reads it.

    Args:
        template: of the prompts.
        tokenizer: a Hugging Face tokenizer; with a chat template where a wording has a system message.

    Raises:
        ValueError: a wording with a system message, but no chat template.
    """

    def __init__(self, template: PromptTemplate, tokenizer: Any) -> None:
        self.template, self.ids = template, TokenIds(tokenizer)
        self._chats = {
            wording.system: ChatPrompt(tokenizer, system=wording.system, template="{query}{document}")
            for wording in template.wordings
            if wording.system is not None
        }

    def __call__(
        self, values: Mapping[str, Value], which: int | str | Wording = 0, *, budget: int | None = None
    ) -> EncodedPrompt:
        """The prompt of one request. It depends on this request alone.

        Args:
            values: by field, as in :meth:`PromptTemplate.render`, or lists as :class:`Entries`.
            which: the wording, or its index or name.
            budget: most tokens of prefix and suffix together; None for any number. Lists lose entries, one list after
                the other, until the prompt fits; it equals the prompt of the remaining entries alone.

        Raises:
            TypeError, ValueError: see :meth:`PromptTemplate.render`; a budget that the prompt exceeds without any
                entry that may be dropped.
        """
        if budget is not None:
            check_budget(budget)
        wording = self.template.wording(which)
        check_values(values, self.template.source)
        counts = {name: len(value.texts) for name, value in values.items() if isinstance(value, Entries)}
        full = dict(counts)
        prompt = self._encoded(values, counts, wording)
        if budget is None or len(prompt) <= budget:
            return prompt
        lists = {name: value for name, value in values.items() if isinstance(value, Entries) and name in wording.fields}
        order = list(self.template.fields)
        for name in sorted(lists, key=lambda name: (lists[name].priority, -order.index(name))):
            prompt = self._shortened(values, counts, wording, name, budget)
            if len(prompt) <= budget:
                dropped = {name: full[name] - counts[name] for name in lists if counts[name] < full[name]}
                return EncodedPrompt(prompt.prefix, prompt.suffix, wording, dropped)
        raise ValueError(
            f"budget: expected at least {len(prompt)} tokens for {self.template.source}: {wording.name}; got {budget}"
        )

    def _shortened(
        self, values: Mapping[str, Value], counts: dict[str, int], wording: Wording, name: str, budget: int
    ) -> EncodedPrompt:
        """The prompt with as many entries of a list as fit, or with as few as the wording allows. ``counts`` holds how
        many entries of each list are kept."""
        excluded, least = counts[name], min(counts[name], int(name in wording.required))
        counts[name] = least
        best = self._encoded(values, counts, wording)
        while len(best) <= budget and excluded - least > 1:
            middle = counts[name] = (least + excluded) // 2
            prompt = self._encoded(values, counts, wording)
            if len(prompt) <= budget:
                least, best = middle, prompt
            else:
                excluded = middle
        counts[name] = least
        return best

    def _encoded(self, values: Mapping[str, Value], counts: Mapping[str, int], wording: Wording) -> EncodedPrompt:
        texts = {
            name: value.kept(counts[name]) if isinstance(value, Entries) else value for name, value in values.items()
        }
        prefix, suffix = self.template.render(texts, wording)
        if wording.system is not None:
            return EncodedPrompt(*self._chats[wording.system](prefix, suffix), wording)
        return EncodedPrompt([*self.ids.start, *self.ids.encode(prefix)], list(self.ids.encode(suffix)), wording)
