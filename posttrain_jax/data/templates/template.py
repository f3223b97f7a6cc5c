"""What a template is: the fields it has, the part that each plays, and when a record is one.

A part has one meaning in every template; templates differ in the names that they give to the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain_jax.data.records import Record

Fields = Mapping[str, Any]

# the part that a field plays, where no template with exactly these names says otherwise
SYNONYMS = {
    "prompt": "prompt input instruction query task user user_sim question problem",
    "answer": "response output integrated_response agent agent_actions trajectory sequence answer solution completion",
    "reasoning": "think think_steps thinking reasoning reasoning_content thoughts",
    "tools": "tools functions apis",
    "call": "tool_call api_call function_call",
    "result": "tool_response tool_result observation",
    "reward": "reward quality_check optimization score",
    "chosen": "chosen preferred_response preferred",
    "rejected": "rejected dispreferred dispreferred_response",
    "mode": "mode",
    "system": "system system_prompt",
    "context": "context",
}
PART = {name: part for part, names in SYNONYMS.items() for name in names.split()}

# kept as annotations without a word, whatever the template
ANNOTATIONS = "id meta metadata source lang language category difficulty safety_filter unit_test rubric weight".split()

FREE = {"system": "system", "context": "context"}  # every template may have these


@dataclass(frozen=True)
class Template:
    """One shape of training data.

    Attributes:
      name: T01 to T28, or the format's name.
      about: what it is for.
      needs: the part of each field that is required.
      may: the part of each that is not.
      family, variant, stage: as in `records.Record`.
      calls: tool calls that its answers write as text are read.
      when: whether fields that other templates have as well speak for this one.
      translate: makes the record, in place of the translation by parts; takes the fields and a list for notes.
    """

    name: str
    about: str
    needs: Mapping[str, str]
    may: Mapping[str, str] = field(default_factory=dict)
    family: str | None = None
    variant: str | None = None
    stage: str = "sft"
    calls: bool = False
    when: Callable[[Fields], bool] | None = None
    translate: Callable[[Fields, list[str]], Record] | None = None

    @property
    def fields(self) -> dict[str, str]:
        """Every field that it knows, with its part."""
        return {**FREE, **self.may, **self.needs}

    def fit(self, fields: Fields) -> float:
        """How well fields match, by their exact names; 0 when a required one is missing."""
        if not all(name in fields for name in self.needs):
            return 0.0
        known = sum(name in self.fields for name in fields)
        return known + (0.0 if self.when is None else 0.5 if self.when(fields) else -0.5)

    def fit_parts(self, parts: Mapping[str, str]) -> float:
        """How well fields match by their parts, whatever their names; 0 when a required part is missing."""
        if self.translate is not None or not set(self.needs.values()) <= set(parts.values()):
            return 0.0
        known = set(self.fields.values())
        return sum(part in known for part in parts.values()) - 0.25 * len(known - set(parts.values()) - set(FREE))
