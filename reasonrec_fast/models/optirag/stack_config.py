"""The settings of a :class:`~reasonrec_fast.models.optirag.CTRStack`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reasonrec_fast.models.classical.stack_tools import ToolSpec
from reasonrec_fast.models.optirag.evidence_source import AtLeastTwo, EvidenceConfig
from reasonrec_fast.models.optirag.stack_tools import BlockTime, specs_of
from reasonrec_fast.settings import Count

DEFAULT_TOOLS = ("EASE",)
"""Tools of a stack that names none; those that the data cannot carry are left out."""


@dataclass(frozen=True, kw_only=True)
class CTRStackConfig(EvidenceConfig):
    """Settings, beside those of the evidence (:class:`~reasonrec_fast.models.optirag.evidence_source.EvidenceConfig`).

    Attributes:
        tools: classical models whose logits the trees read, each a name or a table of ``kind`` and settings
            (:class:`~reasonrec_fast.models.classical.stack_tools.ToolSpec`). They are fitted without validation: those
            that train in epochs want ``epochs``. None names all of :data:`DEFAULT_TOOLS` that the data can carry.
        blocks: of time, of the training events: a block's logits come from a tool that was fitted on the blocks before.
        block_time: whether blocks divide each user's events (``"user"``, as the split ``"user_time"`` does) or all
            events together (``"all"``, as ``"global_time"`` does).
        tastes: whether the trees read how the user liked items that are like the target
            (:class:`~reasonrec_fast.models.optirag.item_tastes.ItemTastes`).
        attribute: of the items, for whose values the evidence has tastes; by default the one that OptiRAG's prompts
            would read, ``""`` for none.
        ensemble_size: models of trees with different seeds, whose logits are averaged.
    """

    tools: tuple[str | dict[str, Any], ...] | None = None
    blocks: AtLeastTwo = 5
    block_time: BlockTime = "user"
    tastes: bool = True
    attribute: str | None = None
    ensemble_size: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        specs_of(self.tools or ())

    @property
    def specs(self) -> list[ToolSpec]:
        """The models among the tools."""
        return specs_of(DEFAULT_TOOLS if self.tools is None else self.tools)
