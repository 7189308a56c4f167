"""What a run decided, on which evidence: one object, written by name while a strategy works.

The terminal, the JSON and the report show it alike. Knows nothing of networks or images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

__all__ = ["Decision", "Decisions", "Origin"]

Origin = Literal["default", "user", "measured"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """A setting that was left open and got a value.

    Attributes:
        name: of the setting.
        value: that it got.
        origin: "measured" where it rests on evidence, "default" for the strategy's own value, "user" where
            it follows from another setting that was given.
        evidence: what it rests on, as JSON; {} for nothing.
    """

    name: str
    value: Any
    origin: Origin
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Decisions:
    """Collects what a strategy settles, notes and warns of.

    Attributes:
        settled: {setting: Decision}.
        facts: what was found on the way and belongs to no setting, as JSON, by name.
        warnings: one line each, for people.
    """

    settled: dict[str, Decision] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def settle(self, name: str, value: Any, origin: Origin, **evidence: Any) -> None:
        """Give a setting its value; a later call replaces an earlier one."""
        self.settled[name] = Decision(name, value, origin, evidence)

    def record(self, name: str, fact: Any) -> None:
        """Note a fact, as JSON."""
        self.facts[name] = fact

    def warn(self, text: str) -> None:
        """Tell people one line."""
        self.warnings.append(text)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return {
            "settled": {
                n: {"value": d.value, "origin": d.origin, "evidence": dict(d.evidence)}
                for n, d in self.settled.items()
            },
            "facts": dict(self.facts),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Decisions":
        """From what a file says, which may come from anywhere.

        Raises:
            ValueError: it is not as `to_json` writes it; names the entry.
        """
        parts = {"settled": dict, "facts": dict, "warnings": list}
        for name, kind in parts.items():
            if not isinstance(value.get(name), kind):
                raise ValueError(f"{name} is missing or of another kind")
        settled = {}
        for name, entry in value["settled"].items():
            known = isinstance(entry, dict) and set(entry) == {"value", "origin", "evidence"}
            if (
                not known
                or entry["origin"] not in get_args(Origin)
                or not isinstance(entry["evidence"], dict)
            ):
                raise ValueError(f"settled.{name} is not a value with its origin and evidence")
            settled[name] = Decision(name, entry["value"], entry["origin"], entry["evidence"])
        if not all(isinstance(text, str) for text in value["warnings"]):
            raise ValueError("warnings are not all text")
        return cls(settled, dict(value["facts"]), list(value["warnings"]))
