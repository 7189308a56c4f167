"""Every strategy keeps the same contract, on networks of four families."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from headstart.errors import InputError, UsageError
from headstart.networks.building import build_network
from headstart.runs.classifier import Classifier
from headstart.training.heads import COMPARED_UNITS, average_probabilities
from headstart.training.mirroring import FLIP_IMAGES
from headstart.training.rules import (
    DISK_SHARE,
    FLIP_ERRORS,
    FLIP_LOSS,
    IMBALANCE,
    MINUTES,
    VIEWS,
)
from headstart.training.settings import FIELDS
from headstart.training.strategies.table import STRATEGIES

KINDS = ["blobs", "plain", "stripes"]

# Small networks, one of each family: what `build_network` calls it, and its size where it may be chosen.
FAMILIES = {
    "built-in": ("tf_efficientnet_lite0", 48),
    "resnet": ("test_resnet", None),
    "vgg": ("small_cnn", None),  # no BatchNorm
    "vit": ("test_vit", None),
}
SHORT = {"epochs": 2, "batch": 8, "train_precision": "fp32"}
OPTIONS = {
    "linear-probe": {},
    "shallow-probe": {},
    "partial-fine-tune": {**SHORT, "views": 2},
    "fine-tune": SHORT,
    "scratch": SHORT,
}


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """{family: options of `fit`}: the built-in weights, or random ones from a file."""
    folder = tmp_path_factory.mktemp("networks")
    found = {}
    for family, (name, size) in FAMILIES.items():
        found[family] = {"backbone": name, **({"input_px": size} if size else {})}
        if family != "built-in":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = build_network(name, 5)
            for module in network.modules():  # statistics of a network that has seen something
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_var.fill_(0.5)
            torch.save(network.state_dict(), folder / f"{name}.pth")
            found[family]["weights"] = str(folder / f"{name}.pth")
    return found


@pytest.fixture(params=FAMILIES)
def network(request, networks):
    return networks[request.param]


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture
def options(strategy, network):
    """Of a short training; random weights need no file."""
    given = {**network, **OPTIONS[strategy], "strategy": strategy, "device": "cpu"}
    if strategy == "scratch":
        given.pop("weights", None)
    return given


def read_model(folder):
    return {n: (folder / n).read_bytes() for n in ("model.safetensors", "config.json")}


def tell_decisions(run):
    """As metrics.json has them, without measured speeds."""
    told = json.loads((run.folder / "metrics.json").read_text())["decisions"]
    assert headstart.Decisions.from_json(told).to_json() == told
    told["facts"].pop("saved", None)
    for figures in told["facts"].get("training", {}).values():
        if isinstance(figures, dict):
            figures.pop("images_per_s", None)
    told["settled"].get("cut", {}).pop("evidence", None)
    return told


def test_the_contract(loose, tmp_path, options, strategy):
    run = headstart.fit(loose, tmp_path / "one", val=0.25, **options)
    assert run.measured_on == "val"
    assert 0 <= run.metrics["accuracy"].value <= 1
    assert run.images["train"] + run.images["val"] == 24
    assert run.classifier.classes == tuple(KINDS)
    assert set(run.settings) == set(FIELDS)

    # Probabilities are such, and a loaded classifier says the same.
    images = sorted((loose / "stripes").iterdir())[:3]
    found = list(headstart.predict(run.classifier, images))
    again = list(headstart.predict(tmp_path / "one", images))
    for one, other in zip(found, again, strict=True):
        assert sum(p for _, p in one.top) == pytest.approx(1, abs=1e-5)
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-6)
    evaluation = headstart.evaluate(tmp_path / "one", loose, device="cpu", precision="fp32")
    assert evaluation.confusion.sum() == run.images["val"]

    # The same seed gives the same bytes, whatever the workers.
    again = headstart.fit(loose, tmp_path / "two", val=0.25, workers=1, **options)
    assert tell_decisions(again) == tell_decisions(run)
    assert read_model(tmp_path / "two") == read_model(tmp_path / "one")
    assert np.array_equal(
        again.classifier.head.layers[0][0], Classifier.load(tmp_path / "two").head.layers[0][0]
    )


def test_what_was_validated_is_what_is_saved(loose, tmp_path, strategy, networks):
    """The figures of the run are those that a fresh evaluation of its folder gives."""
    given = {**networks["resnet"], **OPTIONS[strategy], "strategy": strategy, "device": "cpu"}
    if strategy == "scratch":
        given.pop("weights")
    else:
        given["precision"] = "fp32"
    run = headstart.fit(loose, tmp_path / "run", val=0.25, **given)
    result = headstart.evaluate(
        run.folder, loose, split="val", device="cpu", engine="torch", precision="fp32"
    )
    for name in ("accuracy", "log_loss"):
        assert result.metrics[name].value == pytest.approx(run.metrics[name].value, abs=2e-2)


def test_a_run_trained_by_gradient_tells_its_history(loose, tmp_path, tiny):
    told = []
    options = {**tiny, **SHORT, "strategy": "fine-tune"}
    run = headstart.fit(loose, tmp_path / "run", on_epoch=told.append, **options)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [
        {k: v for k, v in e.items() if k not in ("epochs", "best_epoch")} for e in told
    ] == history
    assert [h["epoch"] for h in history] == [0, 1, 2]
    assert [e["epochs"] for e in told] == [2, 2, 2]
    wanted = {
        "epoch",
        "val_loss",
        "val_accuracy",
        "train_loss",
        "train_accuracy",
        "lr",
        "images_per_s",
    }
    assert wanted <= set(history[1])
    best = run.decisions.facts["training"]["best_epoch"]
    assert told[-1]["best_epoch"] == best
    assert history[best]["val_loss"] == min(h["val_loss"] for h in history)
    assert run.metrics["accuracy"].value == pytest.approx(history[best]["val_accuracy"])
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "run" / "start.json").exists()


def test_cached_and_live_training_give_the_same_weights(loose, tmp_path, tiny):
    options = {**tiny, **SHORT, "strategy": "partial-fine-tune", "views": 3, "cut": "blocks.3"}
    for name, cached in (("cached", True), ("live", False)):
        headstart.fit(loose, tmp_path / name, cached=cached, seed=5, **options)
    cached, live = (read_model(tmp_path / n)["model.safetensors"] for n in ("cached", "live"))
    assert cached == live


def test_partial_fine_tuning_leaves_what_is_below_the_cut(loose, tmp_path, tiny):
    before = headstart.load_backbone(tiny["backbone"], weights=tiny["weights"]).state
    options = {
        **tiny,
        **SHORT,
        "strategy": "partial-fine-tune",
        "views": 2,
        "lr": 1e-2,
    }
    run = headstart.fit(loose, tmp_path / "run", cut="blocks.3", val=0, **options)
    after = run.classifier.backbone.state
    changed = {k for k in before if not k.startswith("head.") and (before[k] != after[k]).any()}
    assert changed
    assert all(
        k.startswith(("blocks.3.", "blocks.4.", "blocks.5.", "norm.", "fc_norm.")) for k in changed
    )


@pytest.mark.parametrize("strategy", ["linear-probe", "shallow-probe"])
def test_several_cut_points_or_an_early_one(loose, tmp_path, tiny, strategy):
    options = {**tiny, "strategy": strategy, "cut": "auto"}
    run = headstart.fit(loose, tmp_path / "run", **options)
    loaded = Classifier.load(tmp_path / "run")
    assert loaded.cuts == run.classifier.cuts
    assert run.settings["cut"]["origin"] in ("measured", "user")
    assert len(run.decisions.settled["cut"].evidence["scores"]) > 2
    card = json.loads((tmp_path / "run" / "config.json").read_text())
    backbone = headstart.load_backbone(tiny["backbone"], weights=tiny["weights"])
    whole = loaded.cuts == (backbone.cuts[-1].name,)
    assert ("architecture" in card) == whole
    if strategy == "shallow-probe":
        assert len(loaded.backbone.state) < len(backbone.state)
        saved = run.decisions.facts["saved"]
        assert saved["shallow"]["megabytes"] < saved["whole"]["megabytes"]


@pytest.mark.parametrize("val", [0.3, None])
def test_the_mean_of_two_heads(loose, tiny, tmp_path, val):
    options = {**tiny, **({"val": val} if val else {})}
    single = {
        cut: headstart.fit(loose, tmp_path / cut, cut=cut, **options)
        for cut in ("blocks.0", "blocks.1,head")
    }
    names = [c.name for c in single["blocks.0"].classifier.backbone.cuts]
    both = headstart.fit(loose, tmp_path / "both", cut="+".join(single), **options)
    means = average_probabilities([run.measured.probabilities for run in single.values()])
    assert both.measured.probabilities == pytest.approx(means, abs=1e-4)
    assert both.classifier.cuts == tuple(n for n in names if n in "blocks.0,blocks.1,head")
    again = headstart.Run.load(tmp_path / "both")
    assert again.settings["cut"]["value"] == "blocks.0+blocks.1,head"
    if not val:
        found = again.decisions.settled["penalty"].evidence["heads"]
        assert found.keys() == single.keys()
    parts = [headstart.evaluate(run, loose, split="all").measured for run in single.values()]
    joined = headstart.evaluate(again, loose, split="all").measured.probabilities
    means = average_probabilities([part.probabilities for part in parts])
    assert joined == pytest.approx(means, abs=1e-4)


def test_a_mean_of_heads_is_for_linear_probes(loose, tiny, tmp_path):
    with pytest.raises(UsageError, match="is the mean of linear heads, and the head is 8"):
        headstart.fit(loose, tmp_path / "mlp", **{**tiny, "cut": "blocks.0+blocks.1", "head": "8"})
    for strategy in ("shallow-probe", "partial-fine-tune"):
        options = {**tiny, "strategy": strategy, "cut": "blocks.0+blocks.1"}
        with pytest.raises(UsageError, match=r"blocks\.0"):
            headstart.fit(loose, tmp_path / strategy, **options)


def test_all_cut_points_together(loose, tmp_path, tiny):
    run = headstart.fit(loose, tmp_path / "run", cut="all", **tiny)
    assert run.classifier.cuts == tuple(c.name for c in run.classifier.backbone.cuts)
    result = headstart.evaluate(tmp_path / "run", loose)
    assert result.metrics["accuracy"].value > 0.9


@pytest.mark.parametrize("strategy", ["linear-probe", "partial-fine-tune"])
def test_an_mlp_head(loose, tmp_path, tiny, strategy):
    options = {**tiny, "epochs": 3, "optimizer": "amsgrad", "strategy": strategy}
    run = headstart.fit(loose, tmp_path / "run", head="d0.2-16-8", **options)
    assert [w.shape[0] for w, _ in run.classifier.head.layers] == [16, 8, 3]
    again = headstart.fit(loose, tmp_path / "again", head="d0.2-16-8", **options)
    assert read_model(run.folder) == read_model(again.folder)
    assert "architecture" not in json.loads((tmp_path / "run" / "config.json").read_text())
    one = next(iter((loose / "plain").iterdir()))
    found = [next(headstart.predict(m, [one])).probability for m in (run.classifier, run.folder)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_ctrl_c_while_the_head_begins_ends_it(loose, tmp_path, tiny):
    """And not that head's training alone, after which that of the network would go on from half of it."""
    stages = []

    def progress(stage, done, total):
        stages.append(stage)
        if stages.count("training") == 3:
            signal.raise_signal(signal.SIGINT)

    options = {**tiny, **SHORT, "strategy": "fine-tune", "head": "8", "augment": "none"}
    with pytest.raises(KeyboardInterrupt):
        headstart.fit(loose, tmp_path / "run", progress=progress, **options)
    assert stages.count("training") == 3


def test_a_damaged_plan_is_told(loose, tmp_path, tiny):
    options = {**tiny, **SHORT, "strategy": "partial-fine-tune", "views": 2, "flip": "no"}

    def stop(entry):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        headstart.fit(loose, tmp_path / "run", on_epoch=stop, **options)
    (tmp_path / "run/plan.json").write_text('{"cut": "nowhere"}')
    with pytest.raises(InputError, match=r"plan.json: damaged; fit anew with --overwrite"):
        headstart.fit(None, tmp_path / "run", resume=True)


def test_letting_batchnorm_drift_ruins_the_result(plant, tmp_path):
    """With few images a batch, statistics that move make validation accuracy fall."""
    data = plant(tmp_path / "data", dict.fromkeys((f"train/{k}" for k in KINDS), 10))
    plant(data, dict.fromkeys((f"val/{k}" for k in KINDS), 10), first=50)
    options = {
        "strategy": "fine-tune", "input_px": 64, "epochs": 2, "batch": 4, "lr": 1e-5,
        "augment": "none", "train_precision": "fp32", "device": "cpu",
    }  # fmt: skip
    last = {}
    for batchnorm in ("frozen", "adapt"):
        history = []
        headstart.fit(
            data, tmp_path / batchnorm, batchnorm=batchnorm, on_epoch=history.append, **options
        )
        last[batchnorm] = history[-1]
        assert history[0]["val_accuracy"] > 0.9
    assert last["frozen"]["val_accuracy"] > 0.9
    assert last["adapt"]["val_loss"] > last["frozen"]["val_loss"] + 0.2
    assert last["adapt"]["val_accuracy"] < last["frozen"]["val_accuracy"]


def test_only_what_was_measured_is_called_so(loose, plant, tiny, tmp_path, cli):
    short = {**tiny, **SHORT, "strategy": "partial-fine-tune"}
    run = headstart.fit(
        loose, tmp_path / "named", freeze_until="blocks.4.norm1", augment="none", **short
    )
    settings = run.settings
    assert settings["freeze_until"] == {"value": "blocks.4.norm1", "origin": "user"}
    assert settings["cut"] == {"value": "blocks.4.norm1", "origin": "user"}
    assert settings["views"] == {"value": 1, "origin": "default"}
    assert settings["flip"] == {"value": "no", "origin": "default"}
    assert settings["penalty"]["origin"] == "measured"
    run = headstart.fit(loose, tmp_path / "given", cut="blocks.4", **short)
    assert run.settings["cut"]["origin"] == "user"
    assert run.settings["views"] == {"value": VIEWS, "origin": "default"}
    assert run.settings["flip"]["origin"] == "measured"

    few = plant(tmp_path / "few", dict.fromkeys(KINDS, 1))
    run = headstart.fit(few, tmp_path / "probe", **tiny)
    assert run.settings["penalty"] == {"value": 0.01, "origin": "default"}
    run = headstart.fit(few, tmp_path / "shallow", **{**tiny, "strategy": "shallow-probe"})
    assert run.settings["cut"]["origin"] == "default"
    run = headstart.fit(few, tmp_path / "partial", val=0, cut="blocks.4", **short)
    assert run.settings["flip"] == {"value": "yes", "origin": "default"}
    code, out, _ = cli(
        *("fit", few, "-o", tmp_path / "told"),
        *(word for name, value in tiny.items() for word in (f"--{name}", value)),
    )
    assert code == 0
    assert "penalty 0.01 (default)" in out


def test_random_weights_that_learned_nothing_are_told(loose, tiny, tmp_path, cli):
    options = {"backbone": "small_cnn", "strategy": "scratch", "device": "cpu", "augment": "none"}
    run = headstart.fit(loose, tmp_path / "run", epochs=1, lr=1e-12, **options)
    assert run.decisions.facts["training"]["best_epoch"] == 0
    assert any(
        "no epoch was better on the validation images than the random" in w for w in run.warnings
    )
    head = headstart.fit(
        loose, tmp_path / "head", head="4", epochs=1, lr=1e-12, min_delta=9, **tiny
    )
    assert any("the random weights that the head started with" in w for w in head.warnings)
    code, out, err = cli(
        *("fit", loose, "-o", tmp_path / "again", "--backbone", "small_cnn"),
        *("--strategy", "scratch", "--device", "cpu", "--augment", "none"),
        # Enough steps that an epoch beats the random weights whatever the rounding of the machine.
        *("--epochs", "12", "--batch", "4", "--monitor", "loss"),
    )
    assert code == 0
    assert "trained on cpu" in out
    assert "store" not in out
    assert "learned nothing" not in err


def test_epochs_tell_the_log_loss_of_the_figures_where_classes_are_weighted(plant, tiny, tmp_path):
    counts = {"train/blobs": 9, "train/plain": 2, "val/blobs": 6, "val/plain": 2}
    data = plant(tmp_path / "data", counts)
    histories = {}
    for weights in ("balanced", "none"):
        histories[weights] = []
        run = headstart.fit(
            data, tmp_path / weights, class_weights=weights,
            on_epoch=histories[weights].append, **{**tiny, **SHORT, "strategy": "fine-tune"},
        )  # fmt: skip
        best = histories[weights][run.decisions.facts["training"]["best_epoch"]]
        told = best["val_log_loss" if weights == "balanced" else "val_loss"]
        assert told == pytest.approx(run.metrics["log_loss"].value, rel=1e-4)
    assert all(e["val_loss"] != e["val_log_loss"] for e in histories["balanced"])
    assert not any("val_log_loss" in e for e in histories["none"])


@pytest.mark.parametrize(
    ("sentence", "values"),
    [
        (r"more than (two) standard errors and more than ([0-9.]+) of accuracy",
         ({"two": FLIP_ERRORS}, FLIP_LOSS)),
        (r"one half of the training images \(([0-9,]+) at most\)", (FLIP_IMAGES,)),
        (r"whose epochs take at most ([0-9]+) minutes, or most of what is left of `--budget`",
         (MINUTES,)),
        (r"fit into (a quarter) of the free disk", ({"a quarter": DISK_SHARE},)),
        (r"as many views as fit, ([0-9]+) at most", (VIEWS,)),
        (r"with more than ([0-9,]+) images or groups, on a stratified sample", (COMPARED_UNITS,)),
        (r"largest class has (three) times the images of the smallest", ({"three": IMBALANCE},)),
    ],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_the_guide_has_the_numbers_of_the_code(sentence, values):
    root = Path(__file__).parent.parent
    text = " ".join(
        (root / name).read_text(encoding="utf-8") for name in ("docs/strategies.md", "README.md")
    )
    found = re.search(sentence.replace(" ", r"\s+"), text)
    assert found, sentence
    for told, value in zip(found.groups(), values, strict=True):
        word = " ".join(told.split())
        if isinstance(value, dict):
            assert value[word] == {"two": 2, "three": 3, "a quarter": 0.25}[word]
        else:
            assert float(word.replace(",", "")) == value


def test_a_cut_that_trains_nothing_is_refused(loose, tmp_path, tiny):
    options = {**tiny, "strategy": "partial-fine-tune", "cut": "head"}
    with pytest.raises(UsageError, match=r"leaves nothing but the head.*--strategy linear-probe"):
        headstart.fit(loose, tmp_path / "r", **options)


@pytest.mark.parametrize(("axis", "flip"), [(1, "no"), (0, "yes")], ids=["sides", "heights"])
def test_classes_that_mirroring_exchanges_are_seen(tmp_path, tiny, axis, flip):
    """Bright on the left or on the right leaves mirroring out; at the top or bottom it stays."""
    rng = np.random.default_rng(0)
    for name in ("one", "other"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            half = np.array_split(np.arange(40), 2)[name == "other"]
            pixels[(slice(None), half) if axis else half] += 150
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    options = {**tiny, **SHORT, "strategy": "partial-fine-tune", "views": 2, "cut": "blocks.4"}
    run = headstart.fit(tmp_path / "data", tmp_path / "run", **options)
    assert run.settings["flip"] == {"value": flip, "origin": "measured"}
    assert (run.decisions.settled["flip"].evidence["accuracy_lost"] > 0.5) == (flip == "no")


def test_what_the_user_gave_is_no_decision(loose, tmp_path, tiny):
    given = {"augment": "light", "flip": "no", "lr": 1e-3, "epochs": 1, "val": 0.25}
    options = {"backbone": tiny["backbone"], "device": "cpu", "strategy": "scratch", **given}
    run = headstart.fit(loose, tmp_path / "run", **options)
    assert not set(given) & set(run.decisions.settled)
    assert {run.settings[name]["origin"] for name in given} == {"user"}


def test_views_that_do_not_fit_are_told(loose, tmp_path, tiny, monkeypatch):
    file = "headstart.training.strategies.partial_fine_tune.DISK_SHARE"
    monkeypatch.setattr(file, 1e-12)
    options = {**tiny, **SHORT, "strategy": "partial-fine-tune", "views": 3}
    run = headstart.fit(loose, tmp_path / "run", **options)
    assert run.decisions.settled["views"].value == 1
    assert any(w.startswith("1 of the 3 views of each image are cached") for w in run.warnings)
