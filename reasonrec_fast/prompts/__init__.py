"""Prompts: templates as data in several wordings, token budgets, and token ids in which no text is a control token."""

from reasonrec_fast.prompts.budget import Fitted, Section, fit_budget
from reasonrec_fast.prompts.template import PromptTemplate, Wording, load_template
from reasonrec_fast.prompts.tokens import TokenIds

__all__ = ["Fitted", "PromptTemplate", "Section", "TokenIds", "Wording", "fit_budget", "load_template"]
