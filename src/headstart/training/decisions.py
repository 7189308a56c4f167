"""What a run decided, on which evidence: one object, written by name while a strategy works.

The terminal, the JSON and the report show it alike. Knows nothing of networks or images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["Decision", "Decisions", "Origin"]

Origin = Literal["default", "user", "measured"]
ORIGINS: tuple[Origin, ...] = ("default", "user", "measured")


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
        """{"settled": {setting: {"value", "origin", "evidence"}}, "facts": {…}, "warnings": […]}."""
        settled = {
            name: {"value": d.value, "origin": d.origin, "evidence": dict(d.evidence)}
            for name, d in self.settled.items()
        }
        return {"settled": settled, "facts": dict(self.facts), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Decisions":
        """The inverse of `to_json`.

        Raises:
            ValueError: it is of another form.
        """
        try:
            settled = {
                name: Decision(
                    name, d["value"], ORIGINS[ORIGINS.index(d["origin"])], dict(d["evidence"])
                )
                for name, d in dict(value["settled"]).items()
            }
            return cls(settled, dict(value["facts"]), [str(w) for w in value["warnings"]])
        except (KeyError, TypeError) as exc:
            raise ValueError(f"no decisions: {exc}") from exc
