"""Takes measured `Facts` and `Costs`, gives the `Advice`: which case this is, what to do, and why.

Pure arithmetic, without PyTorch and without images: the rules are tested on tables of facts, and judged by
`benchmarks/advice.py` on tasks that they were not made on. docs/advice.md explains them with measurements.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headstart.cards import make_card, make_table, paint_bar
from headstart.frames import make_frame
from headstart.metrics import Estimate
from headstart.training.costs import PIXELS, Bill, Costs, CutWork
from headstart.training.cuts import read_cuts
from headstart.training.facts import (
    SIMILAR_CONFIDENCE,
    Depth,
    Facts,
    PowerLaw,
    fit_power_law,
)
from headstart.training.rules import count_epochs

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "CASES",
    "MATTERS",
    "Advice",
    "Candidate",
    "Case",
    "Limits",
    "choose_candidate",
    "choose_network",
    "expect_ratio",
    "find_case",
    "give_advice",
    "list_candidates",
    "say_time",
]

CASES = {
    1: "few images, like those that the network was trained on",
    2: "few images, unlike those that the network was trained on",
    3: "many images, like those that the network was trained on",
    4: "many images, unlike those that the network was trained on",
}
# From so many images, and so many in the middle one of the classes, they are many.
MANY_IMAGES, MANY_A_CLASS = 1000, 50
# The images are like those of the pre-training if two of three say so: the network's own head is sure of
# them, the statistics before its last BatchNorm have moved by this little, in nats, and no cut point before
# the last is clearly better for a probe.
SIMILAR_SHIFT = 0.15

# What would be advised with so many times the images, or the time, is looked at.
MORE = (2, 3, 5, 10, 30)

# What gains less than this is not worth its time.
MATTERS = 0.003
# The fraction of the images that is held out to choose the epoch by.
HELD_OUT = 0.2
# The least epochs of training above a cut point and of everything, where they fit; the fewest steps that are
# worth while; views.
EPOCHS, WHOLE_EPOCHS, LEAST_STEPS, VIEWS = 15, 10, 100, 8
BATCH = 32

# What training takes off the logarithm of a probe's error: where the network's head is not sure of the images
# at all; for each unit of confidence; for each unit of the logarithm by which earlier features lower it.
GAIN, GAIN_BY_CONFIDENCE, GAIN_BY_DEPTH = -0.85, 1.5, 3.0
# Half of that takes so many steps; all of it so much of the network above the cut, and less of it this power.
HALF_STEPS, OPEN_SHARE, TAKEN_POWER, WHOLE_SHARE = 200, 0.45, 0.75, 0.9
# Standard error of the logarithm: of two trainings of one kind, and of what the data have to gain.
LEAST_SPREAD, SPREAD = 0.1, 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """Which of the four classic cases of transfer learning the data are.

    Attributes:
        number: a key of `CASES`; 0 where too little could be measured.
        evidence: the figures that it was decided by, a sentence each.
    """

    number: int
    evidence: tuple[str, ...]

    @property
    def words(self) -> str:
        """The case in words."""
        return CASES.get(self.number, "too few images to measure which of the four cases this is")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What bounds a training.

    Attributes:
        seconds: that are left, the features being there.
        disk_mb: that activations may take.
        val_images: of a validation split that the data have.
        refit: whether images are held out and trained on in the end; else they have such a split, or
            nothing is held out.
    """

    seconds: float
    disk_mb: float
    val_images: int = 0
    refit: bool = True


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way of training, with what it is expected to bring and cost.

    Attributes:
        strategy: a key of `STRATEGIES`.
        settings: {setting: value} beside the strategy's own.
        accuracy: expected on new images.
        low, high: its 95 % interval.
        bill: what it costs beyond the features, which are there.
        reason: a sentence on where the expectation comes from.
        spread: standard error of the gain that is expected over a probe on the last features; 0 for probes.
    """

    strategy: str
    settings: Mapping[str, Any]
    accuracy: float
    low: float
    high: float
    bill: Bill
    reason: str
    spread: float = 0.0

    @property
    def cuts(self) -> tuple[str, ...]:
        """The cut points that it reads or begins at, each once; () where there is none."""
        heads = read_cuts(self.settings["cut"]) if "cut" in self.settings else ()
        return tuple(dict.fromkeys(name for cuts in heads for name in cuts))

    @property
    def name(self) -> str:
        """The strategy, and the cut point where there is one."""
        if not self.cuts:
            return self.strategy
        place = self.settings["cut"] if len(self.cuts) < 3 else f"{len(self.cuts)} cut points"
        return f"{self.strategy} at {place}"


def find_case(facts: Facts) -> Case:
    """Say which case the facts are of."""
    if not facts.depths:
        return Case(0, ("a class has fewer than two images, or groups of them",))
    middle = sorted(facts.per_class)[len(facts.per_class) // 2]
    many = facts.images >= MANY_IMAGES and middle >= MANY_A_CLASS
    lines = [
        f"{facts.images:,} images, {middle:,} in the middle one of {facts.classes:,} classes: "
        f"{'many' if many else 'few'} (many: from {MANY_IMAGES:,} and {MANY_A_CLASS})"
    ]
    votes = []
    if facts.confidence is not None and math.isfinite(facts.confidence):
        votes.append(facts.is_known)
        lines.append(
            f"the network's own head gives its first guess {facts.confidence:.2f} on average: "
            f"{_like(votes[-1])} (like: from {SIMILAR_CONFIDENCE})"
        )
    if facts.shift and math.isfinite(facts.shift[-1]):
        votes.append(facts.shift[-1] <= SIMILAR_SHIFT)
        lines.append(
            f"the statistics before the last BatchNorm have moved by {facts.shift[-1]:.2f} nats: "
            f"{_like(votes[-1])} (like: up to {SIMILAR_SHIFT})"
        )
    last, best = facts.singles[-1], max(facts.singles, key=lambda d: d.accuracy)
    votes.append(last.accuracy >= best.accuracy - last.error)
    lines.append(
        f"a probe on the last features has {last.accuracy:.3f}, the best cut point "
        f"({best.cut}) {best.accuracy:.3f}: {_like(votes[-1])} (like: within {last.error:.3f})"
    )
    like = 2 * sum(votes) > len(votes)
    return Case(1 + (not like) + 2 * many, tuple(lines))


def _like(vote: bool) -> str:
    return "like the pre-training" if vote else "unlike it"


def list_candidates(facts: Facts, costs: Costs, limits: Limits) -> tuple[Candidate, ...]:
    """List the ways of training with what each would bring and cost, as large as the limits allow."""
    law = fit_power_law(facts.curve)
    listed = [
        _of_probe("linear-probe", facts, depth, law, costs)
        for depth in dict.fromkeys([facts.best, facts.singles[-1]])
    ]
    if len(facts.singles) > 1:
        listed.append(_of_probe("shallow-probe", facts, _choose_shallow(facts), law, costs))
    start = _expect(facts, facts.singles[-1], law)
    for cut in costs.cuts:
        whole = cut.name == PIXELS
        if not whole and not _may_begin(cut, costs):
            continue
        trained = _of_training(cut, facts, costs, limits, start)
        if trained.bill.disk_mb <= limits.disk_mb:
            listed.append(trained)
    return tuple(listed)


def _of_probe(
    strategy: str, facts: Facts, depth: Depth, law: PowerLaw | None, costs: Costs
) -> Candidate:
    expected = _expect(facts, depth, law)
    margin = 1.96 * max(depth.error, 0.5 / facts.measured)
    return Candidate(
        strategy=strategy,
        settings={"cut": depth.cut},
        accuracy=expected,
        low=max(0.0, expected - margin),
        high=min(1.0, expected + margin),
        bill=costs.bill_probe(),
        reason=f"a probe there has {depth.accuracy:.3f} in cross-validation",
    )


def _expect(facts: Facts, depth: Depth, law: PowerLaw | None) -> float:
    """Expect the accuracy of a probe on all images.

    Errors are taken to be as the log losses, which tell two depths apart with fewer images than accuracies
    do, none lower than that of the depth to read; and to fall with the number of images as the learning curve
    says.
    """
    # Half an image more is wrong, so that no mistakes at all do not count as none ever.
    error = max(1 - facts.best.accuracy, 0.5 / facts.measured)
    error *= max(1.0, depth.log_loss / max(facts.best.log_loss, 1e-9))
    # Cross-validation trains on four fifths of the images.
    more = max(facts.images, 1) / max(0.8 * facts.measured, 1)
    rate = 0.0 if law is None else min(law.rate, 1.0)
    return 1 - min(1.0, error * math.exp(-rate * math.log(more)))


def _choose_shallow(facts: Facts) -> Depth:
    """The best cut point before the last; that network is smaller, and not more accurate."""
    return min(facts.singles[:-1], key=lambda d: d.log_loss)


def _may_begin(cut: CutWork, costs: Costs) -> bool:
    """Whether the cut point is in the upper two thirds of the network: below them nothing was gained."""
    names = [c.name for c in costs.cuts if c.name != PIXELS]
    return names.index(cut.name) >= (len(names) + 1) // 3


def _fit_into(cut: CutWork, facts: Facts, costs: Costs, limits: Limits) -> tuple[int, int, Bill]:
    """(epochs, views, cost): as many as time and disk allow, from all to the fewest that make sense."""
    least = WHOLE_EPOCHS if cut.name == PIXELS else EPOCHS
    held = round(HELD_OUT * facts.images) if limits.refit else 0
    trained = facts.images - held

    def bill(epochs: int, views: int) -> Bill:
        return costs.bill_training(
            cut,
            images=trained,
            val_images=held or limits.val_images,
            epochs=epochs,
            views=views,
            batch=BATCH,
            refit=limits.refit,
        )

    epochs = count_epochs(trained, batch=BATCH, least=least)
    while True:
        views = 1 if cut.name == PIXELS else min(VIEWS, epochs)
        while views > 1 and bill(epochs, views).disk_mb > limits.disk_mb:
            views -= 1
        cost = bill(epochs, views)
        fewest = epochs == 1 or (epochs - 1) * trained < LEAST_STEPS * BATCH
        if fewest or cost.seconds <= limits.seconds:
            return epochs, views, cost
        epochs -= 1


def expect_ratio(facts: Facts, cut: CutWork, epochs: int) -> tuple[float, float]:
    """Expect the error after training above a cut point, as a fraction of the linear probe's.

    Its logarithm is a product of three: what these data have to gain, how much of that the steps that are
    made bring, and how much of it what lies above the cut can take up.

    Returns:
        (ratio, standard error of its logarithm).
    """
    confidence = facts.confidence
    if confidence is None or not math.isfinite(confidence):
        confidence = SIMILAR_CONFIDENCE / 2
    last, lowest = facts.singles[-1], min(d.log_loss for d in facts.depths if len(d.heads) == 1)
    earlier = 0.0
    if facts.best is not last:
        earlier = math.log(max(lowest, 1e-9) / max(last.log_loss, 1e-9))
    gain = GAIN + GAIN_BY_CONFIDENCE * confidence + GAIN_BY_DEPTH * min(0.0, earlier)
    steps = epochs * facts.images / BATCH
    made = steps / (steps + HALF_STEPS)
    taken = (
        min(1.0, ((1 - cut.frozen) / OPEN_SHARE) ** TAKEN_POWER)
        if cut.name != PIXELS
        else WHOLE_SHARE
    )
    spread = math.hypot(LEAST_SPREAD, SPREAD * made * taken)
    return math.exp(gain * made * taken), spread


def _of_training(
    cut: CutWork, facts: Facts, costs: Costs, limits: Limits, start: float
) -> Candidate:
    """Training above a cut point, from a probe that is expected to have the accuracy `start`."""
    epochs, views, bill = _fit_into(cut, facts, costs, limits)
    ratio, spread = expect_ratio(facts, cut, epochs)
    error = (1 - start) * ratio
    # The probe's own error is not known better than it was measured.
    measured = max(facts.singles[-1].error, 0.5 / facts.measured)
    both = math.hypot(spread, measured / max(1 - start, measured))
    whole = cut.name == PIXELS
    settings: dict[str, Any] = {} if whole else {"cut": cut.name, "views": views}
    settings |= {"epochs": epochs, **({"refit": True} if limits.refit else {})}
    return Candidate(
        strategy="fine-tune" if whole else "partial-fine-tune",
        settings=settings,
        accuracy=1 - min(1.0, error),
        low=max(0.0, 1 - error * math.exp(1.96 * both)),
        high=1 - min(1.0, error * math.exp(-1.96 * both)),
        bill=bill,
        reason=f"{ratio:.2f} of the errors of the probe on the last features",
        spread=error * spread,
    )


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to do with data and a network, and why.

    Attributes:
        case: which of the four cases this is.
        chosen: what to do.
        others: what else could be done, the best expectation first.
        sentences: why each of the others was not chosen, in their order.
        changes: what would change the advice, a sentence each.
        sure: the probability that no other way that fits the budget is clearly better.
        backbone: the network's name.
        budget_s: seconds that the training may take.
        facts, costs: as measured.
        networks: (name, what to do with it) of each network that was compared; () where it was one.
    """

    case: Case
    chosen: Candidate
    others: tuple[Candidate, ...]
    sentences: tuple[str, ...]
    changes: tuple[str, ...]
    sure: float
    backbone: str
    budget_s: float
    facts: Facts
    costs: Costs
    networks: tuple[tuple[str, Candidate], ...] = ()

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        rows = [
            [("→ " if way is self.chosen else "") + way.name,
             "" if math.isnan(way.accuracy) else f"{way.accuracy:.3f}",
             f"{way.low:.3f} to {way.high:.3f}", paint_bar(Estimate(way.accuracy, way.low, way.high)),
             say_time(way.bill.seconds), f"{way.bill.memory_mb / 1000:.1f} GB", why]
            for way, why in zip(self._ways(), (self.chosen.reason, *self.sentences), strict=True)
        ]  # fmt: skip
        number = f"case {self.case.number}: " if self.case.number else ""
        lines = [f"{number}{self.case.words}", *self.case.evidence, *self.changes]
        heads = ("", "expected", "95 % interval", "", "time", "memory", "")
        title = f"advice: {self.chosen.name} on {self.backbone}"
        return make_card(title, lines, [make_table(heads, rows)])

    def to_frame(self) -> "DataFrame":
        """Give a table with a row for each way of training, the chosen one first.

        Raises:
            UsageError: pandas is not installed.
        """
        ways = self._ways()
        return make_frame(
            {
                "chosen": [way is self.chosen for way in ways],
                "way": [way.name for way in ways],
                "strategy": [way.strategy for way in ways],
                "settings": [dict(way.settings) for way in ways],
                "accuracy": [way.accuracy for way in ways],
                "low": [way.low for way in ways],
                "high": [way.high for way in ways],
                "seconds": [way.bill.seconds for way in ways],
                "memory_mb": [way.bill.memory_mb for way in ways],
                "disk_mb": [way.bill.disk_mb for way in ways],
                "reason": [way.reason for way in ways],
                "why_not": ["", *self.sentences],
            }
        )

    def _ways(self) -> tuple[Candidate, ...]:
        return (self.chosen, *self.others)

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON; what is not defined is null."""
        value = dataclasses.asdict(self)
        value["case"]["words"] = self.case.words
        cleaned: dict[str, Any] = _clean(value)
        return cleaned


def _clean(value: Any) -> Any:
    """Replace what JSON has no number for."""
    if isinstance(value, Mapping):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def give_advice(facts: Facts, costs: Costs, limits: Limits, *, backbone: str) -> Advice:
    """Decide what to do with the network of this name."""
    budget_s = limits.seconds
    numbers = [n for d in facts.depths for n in (d.accuracy, d.error, d.log_loss, d.gap)]
    if not all(map(math.isfinite, numbers)):
        facts = dataclasses.replace(facts, depths=(), curve=())
    case = find_case(facts)
    if not facts.depths:
        chance = 1 / max(1, facts.classes)
        probe = Candidate(
            "linear-probe",
            {},
            math.nan,
            chance,
            1.0,
            costs.bill_probe(),
            "nothing could be measured",
        )
        return Advice(case, probe, (), (), (), 0.0, backbone, budget_s, facts, costs)
    listed = list_candidates(facts, costs, limits)
    chosen = choose_candidate(listed, budget_s)
    others = sorted((c for c in listed if c is not chosen), key=lambda c: -c.accuracy)
    return Advice(
        case=case,
        chosen=chosen,
        others=tuple(others),
        sentences=tuple(_say_why_not(c, chosen, budget_s) for c in others),
        changes=_find_changes(facts, costs, limits, chosen),
        sure=_how_sure(chosen, [c for c in others if c.bill.seconds <= budget_s]),
        backbone=backbone,
        budget_s=budget_s,
        facts=facts,
        costs=costs,
    )


def _how_sure(chosen: Candidate, others: Sequence[Candidate]) -> float:
    """The probability that no other way is better by more than what matters, taken one at a time."""

    def is_beaten(other: Candidate) -> float:
        spread = math.hypot(chosen.high - chosen.low, other.high - other.low) / (2 * 1.96)
        gain = other.accuracy - MATTERS - chosen.accuracy
        return 0.5 * math.erfc(-gain / max(spread, 1e-9) / math.sqrt(2))

    return 1 - max(map(is_beaten, others), default=0.0)


def _find_changes(facts: Facts, costs: Costs, limits: Limits, chosen: Candidate) -> tuple[str, ...]:
    """Say with how many times the images, and with which time, something else would be advised."""
    lines = []
    for times in MORE:
        more = dataclasses.replace(
            facts, images=times * facts.images, per_class=tuple(times * n for n in facts.per_class)
        )
        other = _choose_with(more, costs, limits, times)
        # With so many images that every way is perfect the cheapest is, which tells nobody anything.
        if other.strategy != chosen.strategy and not other.strategy.endswith("probe"):
            lines.append(
                f"with {times} times the images and the time: {other.name}, {other.accuracy:.3f} expected"
            )
            break
    for times in MORE:
        other = _choose_with(facts, costs, limits, times)
        if other.accuracy > chosen.accuracy + MATTERS:
            time = say_time(times * limits.seconds)
            lines.append(f"with {time}: {other.name}, {other.accuracy:.3f} expected")
            break
    return tuple(lines)


def _choose_with(facts: Facts, costs: Costs, limits: Limits, times: int) -> Candidate:
    """Choose as with so many times the time."""
    more = dataclasses.replace(limits, seconds=times * limits.seconds)
    return choose_candidate(list_candidates(facts, costs, more), more.seconds)


def choose_candidate(listed: Sequence[Candidate], budget_s: float) -> Candidate:
    """Choose the cheapest of those that are about as good as the best that fits the budget."""
    fitting = [c for c in listed if c.bill.seconds <= budget_s] or [
        min(listed, key=lambda c: c.bill.seconds)
    ]
    best = max(c.accuracy for c in fitting)
    alike = [c for c in fitting if c.accuracy >= best - MATTERS]
    return min(alike, key=lambda c: (c.bill.seconds, len(c.cuts), -c.accuracy))


def choose_network(advices: Sequence[Advice]) -> Advice:
    """Choose among the advices for several networks as among candidates; the first of those alike."""
    if len(advices) == 1 or not all(a.facts.depths for a in advices):
        return advices[0]
    # Of a larger network the images may not be read in the time; each has its own rest of the budget.
    fitting = [a for a in advices if a.chosen.bill.seconds <= a.budget_s] or advices[:1]
    by_candidate = {id(a.chosen): a for a in fitting}
    chosen = choose_candidate([a.chosen for a in fitting], math.inf)
    networks = tuple((a.backbone, a.chosen) for a in advices)
    return dataclasses.replace(by_candidate[id(chosen)], networks=networks)


def _say_why_not(other: Candidate, chosen: Candidate, budget_s: float) -> str:
    gain = 100 * (other.accuracy - chosen.accuracy)
    seconds = other.bill.seconds
    if seconds > budget_s:
        return f"takes {say_time(seconds)}, and {say_time(budget_s)} are left"
    if gain > 0:
        return f"would gain {gain:.1f} points for {say_time(seconds)}"
    return f"would lose {-gain:.1f} points and take {say_time(seconds)}"


def say_time(seconds: float) -> str:
    """Say a time in words: "12 s", "3.5 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
