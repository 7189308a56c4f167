"""What depends on the kind of problem, for each kind and for one that only these tests know."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from headstart.data.dataset import Row, dataset_of_rows, match_classes
from headstart.data.loading import FORMS, load_dataset
from headstart.data.scan import scan_images
from headstart.data.splits import split_dataset
from headstart.errors import UsageError
from headstart.metrics import confusion_matrix, measure, measure_each
from headstart.problem import PROBLEMS, SINGLE_LABEL, softmax
from headstart.training.heads import LinearHead, MlpHead, assign_folds, head_of_arrays

SOME = {
    "single-label": [(2,), (0,), None, (2,)],
    "multi-label": [(0, 2), (), None, (1,)],
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_targets_are_the_classes_they_are_made_of(name):
    problem, rows = PROBLEMS[name], SOME[name]
    assert problem.name == name
    targets = problem.encode(rows, 3)
    assert len(targets) == len(rows)
    assert problem.decode(targets) == [row or () for row in rows]
    assert problem.known(targets).tolist() == [row is not None for row in rows]
    assert len(problem.encode([], 3)) == 0


@pytest.mark.parametrize("name", PROBLEMS)
def test_probabilities_are_read_and_measured(name):
    problem = PROBLEMS[name]
    probabilities = problem.link(np.array([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]]))
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    targets = problem.encode([(1,), (0,)], 3)
    figures = problem.measure(targets, probabilities, ("a", "b", "c"))
    assert next(iter(figures.values())).value == 1
    each = problem.measure_each(targets, probabilities, ("a", "b", "c"))
    assert {name: own.images for name, own in each.items()} == {"a": 1, "b": 1, "c": 0}
    assert problem.confuse(targets, probabilities).sum() == 2


def test_a_single_label_is_an_index():
    targets = SINGLE_LABEL.encode([(1,), None, (0,)], 2)
    assert targets.dtype == np.int64
    assert targets.tolist() == [1, -1, 0]
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    labels = np.array([1, 0, 0])
    assert SINGLE_LABEL.link is softmax
    assert SINGLE_LABEL.measure is measure
    assert SINGLE_LABEL.measure_each is measure_each
    true = np.array([0, 0, 1])
    expected = confusion_matrix(true, labels, 2)
    assert (SINGLE_LABEL.confuse(true, probabilities) == expected).all()


def test_softmax_never_overflows():
    assert softmax(np.array([1e300, 0])).tolist() == [1, 0]
    assert softmax(np.array([[0.0, 0.0], [0.0, np.log(3)]])) == pytest.approx(
        np.array([[0.5, 0.5], [0.25, 0.75]])
    )


def encode(rows, count):
    """int8 (N, C), -1 where nothing is known."""
    targets = np.array([[k in (row or ()) for k in range(count)] for row in rows], dtype=np.int8)
    targets[[row is None for row in rows]] = -1
    return targets


# Any number of labels an image.
SEVERAL = dataclasses.replace(
    SINGLE_LABEL,
    name="several",
    encode=encode,
    decode=lambda targets: [tuple(np.flatnonzero(row > 0).tolist()) for row in targets],
    known=lambda targets: (targets >= 0).all(axis=1),
    link=lambda logits: 1 / (1 + np.exp(-logits)),
)


def several(count=60):
    labels = [("round",), ("red", "round"), ("red",), (), None]
    rows = [Row(f"{n:02}", labels[n % 5]) for n in range(count)]
    return dataset_of_rows(Path("nowhere"), rows, problem=SEVERAL)


def test_data_may_have_several_labels_an_image():
    dataset = several()
    assert dataset.classes == ("red", "round")
    assert dataset.targets[:5].tolist() == [[0, 1], [1, 1], [1, 0], [0, 0], [-1, -1]]
    assert dataset.labelled()[:5].tolist() == [True] * 4 + [False]
    assert dataset.label_names()[:5] == ("round", "red|round", "red", "", "")
    assert dataset.select(np.array([1, 4])).targets.tolist() == [[1, 1], [-1, -1]]
    matched = match_classes(dataset, ("round", "green", "red"))
    assert matched[:3].tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 1]]
    assert matched[4].tolist() == [-1, -1, -1]
    with pytest.raises(
        UsageError, match="nowhere: needs data of one label an image, and these are se"
    ):
        dataset.labels


def test_splits_and_folds_are_stratified_by_every_label():
    dataset = split_dataset(several(), val=0.25)
    counts = scan_images(dataset, probes=0).counts
    assert counts == {"train": {"round": 18, "red": 18}, "val": {"round": 6, "red": 6}}
    folds = assign_folds(dataset.targets, dataset.units(), 4, 0, problem=SEVERAL)
    for fold in range(4):
        assert (dataset.targets[folds == fold] > 0).sum(axis=0).tolist() == [6, 6]


def test_groups_are_checked_whatever_the_labels(tmp_path, monkeypatch):
    some = several()
    form = dataclasses.replace(FORMS["folder"], load=lambda path, options: some)
    monkeypatch.setitem(FORMS, "folder", form)
    assert load_dataset(tmp_path, group="(.)").groups[:3] == ("0", "0", "0")
    some = several(10)
    with pytest.raises(UsageError, match="puts all 10 images into one group, '0', so none"):
        load_dataset(tmp_path, group="(.)")


def test_heads_make_the_problems_probabilities():
    weight, bias = np.eye(2, dtype=np.float32), np.zeros(2, dtype=np.float32)
    features = np.array([[0.0, np.log(3)]])
    for problem, expected in ((SINGLE_LABEL, [0.25, 0.75]), (SEVERAL, [0.5, 0.75])):
        for head in (LinearHead(weight, bias, problem), MlpHead(((weight, bias),), problem)):
            again = head_of_arrays(head.arrays(), problem)
            assert head.predict_proba(features) == pytest.approx(np.array([expected]))
            assert again.predict_proba(features).tolist() == head.predict_proba(features).tolist()
