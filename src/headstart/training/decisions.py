"""The decisions of a run and their evidence: one object, which a strategy fills while it works.

The terminal and the JSON show it alike. It knows nothing of networks or images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

__all__ = ["Decision", "Decisions", "Origin"]

Origin = Literal["default", "user", "advised", "measured"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """The value that was chosen for a setting the user did not give.

    Attributes:
        name: of the setting.
        value: as chosen.
        origin: "measured" where there is evidence, "advised" where it follows the advice, "default" for the
            strategy's own value, "user" where it follows from another setting that was given.
        evidence: as JSON; {} for none.
    """

    name: str
    value: Any
    origin: Origin
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Decisions:
    """Collects the decisions, facts and warnings of a strategy.

    Attributes:
        settled: {setting: Decision}.
        facts: findings that belong to no setting, as JSON, by name.
        warnings: one line each, for people.
    """

    settled: dict[str, Decision] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def settle(self, name: str, value: Any, origin: Origin, **evidence: Any) -> None:
        """Give a setting its value; a later call replaces an earlier one."""
        self.settled[name] = Decision(name, value, origin, evidence)

    def record(self, name: str, fact: Any) -> None:
        """Record a fact, as JSON."""
        self.facts[name] = fact

    def warn(self, text: str) -> None:
        """Add a warning of one line, for people."""
        self.warnings.append(text)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON, which `from_json` reads."""
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
        """Read it from JSON, which may come from anywhere.

        Raises:
            ValueError: an entry is not as `to_json` writes it; names the entry.
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
