"""Prompts: templates as data in several wordings, token budgets, and token ids in which no text is a control token."""

from reasonrec_fast.prompts.budget import Fitted, Section, fit_budget
from reasonrec_fast.prompts.encoding import EncodedPrompt, Entries, PromptEncoder
from reasonrec_fast.prompts.items import item_title, natural_title
from reasonrec_fast.prompts.template import Identifier, PromptTemplate, Wording, load_template
from reasonrec_fast.prompts.tokens import TokenIds

__all__ = [
    "EncodedPrompt",
    "Entries",
    "Fitted",
    "Identifier",
    "PromptEncoder",
    "PromptTemplate",
    "Section",
    "TokenIds",
    "Wording",
    "fit_budget",
    "item_title",
    "load_template",
    "natural_title",
]
