"""Words for a terminal: spark lines, lines of epochs, folded lists, shortened names, hints from figures."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from headstart.cli.hints import Hint, list_hints
from headstart.cli.words import EpochLines, draw_spark, fold, shorten
from headstart.metrics import UNDEFINED, ClassFigures, Estimate
from headstart.runs.documents import Members


def entry(epoch, *, epochs=20, best=6, **figures):
    return {"epoch": epoch, "epochs": epochs, "best_epoch": best, **figures}


def test_a_line_an_epoch_with_what_came_before():
    lines = EpochLines("utf-8")
    assert lines.write(entry(0, best=0, val_loss=0.7, val_accuracy=0.5)) == (
        "start  val 0.700  accuracy 0.500".rjust(33)
    )
    for epoch, accuracy in enumerate((0.55, 0.7, 0.75, 0.8, 0.8), 1):
        lines.write(entry(epoch, val_accuracy=accuracy))
    figures = {"train_loss": 0.412, "val_loss": 0.388, "val_accuracy": 0.861}
    assert lines.write(entry(7, **figures)) == (
        "  7/20  train 0.412  val 0.388  accuracy 0.861  ▁▂▅▆▇▇█  best 6"
    )
    again = lines.write(entry(0, best=0, val_loss=0.7, val_accuracy=0.5))
    assert "▁" not in again  # another training begins


def test_a_line_fits_whatever_the_number_of_epochs():
    lines = EpochLines("utf-8")
    for epoch in range(1, 300):
        line = lines.write(
            entry(epoch, epochs=1000, train_loss=123.4567, val_loss=12.3, val_accuracy=epoch / 300)
        )
        assert cell_len(line) <= 80
    assert line.count("█") >= 1


def test_lines_stay_under_each_other_where_fewer_epochs_are_left():
    lines = EpochLines("utf-8")
    lines.write(entry(0, best=0, val_loss=0.7, val_accuracy=0.5))
    written = [
        lines.write(entry(epoch, epochs=epochs, train_loss=0.5))
        for epoch, epochs in ((1, 10), (2, 9))
    ]
    assert [line.index("train") for line in written] == [8, 8]
    assert written[1].startswith("  2/9   train")


def test_no_blocks_where_they_cannot_be_written():
    for encoding in ("ascii", "cp437", "latin-1", "no such encoding"):
        lines = EpochLines(encoding)
        for epoch in (1, 2):
            line = lines.write(entry(epoch, train_loss=0.5, train_accuracy=epoch / 4))
        assert line == "  2/20  train 0.500  training accuracy 0.500"


def test_a_spark_line_is_from_the_lowest_to_the_highest():
    assert draw_spark([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert draw_spark([0, 1, 2, 3], 2) == "▁█"
    assert draw_spark([0.5, 0.5], 9) == "▁▁"
    assert draw_spark([0.0, float("nan"), 1.0], 9) == "▁ █"
    assert draw_spark([float("nan")], 9) == draw_spark([], 9) == draw_spark([1], 0) == ""


@given(st.text(max_size=60), st.integers(8, 40))
def test_a_shortened_name_fits_and_steers_nothing(name, width):
    short = shorten(name, width)
    assert cell_len(short) <= width
    assert short.isprintable()


def test_a_list_is_broken_between_its_items():
    items = ["a" * 30, "b" * 30, "c" * 30]
    assert fold("worst:", items) == [f"worst: {items[0]}, {items[1]},", f"    {items[2]}"]
    assert fold("worst:", items, None) == [f"worst: {', '.join(items)}"]
    assert fold("", ["one", "two"]) == ["one, two"]


# ---------------------------------------------------------------- hints


@pytest.fixture
def trained(tiny_run):
    """A function (validation losses, training accuracies) -> a run with such epochs."""

    def make(losses, accuracies, **changes):
        history = tuple(
            {"epoch": k, "val_loss": loss, "val_accuracy": 0.8, "train_accuracy": accuracy}
            for k, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
        )
        settings = {
            **tiny_run.settings,
            "epochs": {"value": len(losses) - 1, "origin": "default"},
            "augment": {"value": "medium", "origin": "default"},
        }
        run = dataclasses.replace(tiny_run, history=history, settings=settings, per_class={})
        return dataclasses.replace(run, **changes)

    return make


def test_a_hint_goes_by_the_epochs(trained):
    rising = trained([1.0, 0.8, 0.7, 0.6], [None, 0.7, 0.8, 0.8])
    why = "epoch 3 of 3 was the best, so train for longer"
    assert list_hints(rising) == [Hint({"epochs": 6}, why)]
    assert list_hints(dataclasses.replace(rising, interrupted=True)) == []
    learnt = trained([1.0, 0.6, 0.7, 0.9], [None, 0.8, 0.95, 1.0])
    [hint] = list_hints(learnt)
    assert hint.changes == {"augment": "strong"}
    assert "epoch 1 of 3 was the best, then it learnt by heart" in hint.why
    settings = {**learnt.settings, "augment": {"value": "strong", "origin": "user"}}
    [hint] = list_hints(dataclasses.replace(learnt, settings=settings))
    assert hint.changes == {}
    assert list_hints(trained([1.0, 0.6, 0.61, 0.62], [None, 0.8, 0.95, 1.0])) == []
    assert list_hints(trained([], [])) == []


def test_a_hint_asks_for_images_of_the_weakest_class_if_it_has_few(trained):
    low, good = Estimate(0.1, 0.0, 0.3), Estimate(0.9, 0.8, 1.0)
    none = UNDEFINED
    run = trained(
        [], [], metrics={"accuracy": Estimate(0.8, 0.7, 0.9)},
        per_class={
            n: ClassFigures(10, none, e, none, none, none)
            for n, e in {"few": low, "many": good, "more": good}.items()
        },
    )  # fmt: skip
    labels = ["few"] * 3 + ["many"] * 9 + ["more"] * 9

    def with_labels(labels):
        members = Members(
            ids=tuple(map(str, range(len(labels)))), splits=("train",) * len(labels),
            labels=tuple(labels),
        )  # fmt: skip
        parts = dataclasses.replace(run.parts, members=lambda: members)
        return dataclasses.replace(run, parts=parts)

    assert list_hints(with_labels(labels)) == [
        Hint({}, "add images of few: it has 3, the middle class 9")
    ]
    assert list_hints(with_labels(["few"] * 20 + labels)) == []
