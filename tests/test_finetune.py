"""The loop learns, stops, says what is wrong, and goes on from any death to the same weights."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import COMMAND, Forked, run_command
from torch import nn

import headstart
from headstart.errors import InputError, ResourceError, TrainingError, UsageError
from headstart.networks.backbones import load_backbone, with_state
from headstart.runs.classifier import Classifier
from headstart.training.heads import LinearHead, parse_head
from headstart.training.inputs import MatrixInputs, view_of
from headstart.training.loop import Examples, Place, Watch, learning_rate_factor, train_network
from headstart.training.recipes import Recipe
from headstart.training.trainable import TrainableNetwork, head_of_module, module_of_head, new_head

KILLS = int(os.environ.get("HEADSTART_TEST_TRAINING_KILLS", "6"))
STEPS = ("written", "synced", "renamed", "done")


# ---------------------------------------------------------------- a small problem

RECIPE = Recipe(epochs=8, batch=16, lr=1e-2, train_precision="fp32")


@pytest.fixture
def problem():
    """(inputs, labels, ids, rows, val_rows): two classes that a line tells apart, mostly."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    matrix = rng.normal(size=(120, 6)) + 1.8 * labels[:, None]
    ids = tuple(f"{n}.png" for n in range(120))
    return MatrixInputs(matrix), labels, ids, np.arange(90), np.arange(90, 120)


def make_network(seed=0, dropout=0.0):
    return new_head(parse_head(f"d{dropout}-8" if dropout else "8"), 6, 2, seed)


def train(problem, network=None, recipe=RECIPE, validated=True, **options):
    inputs, labels, ids, rows, val = problem
    network = network or make_network()
    val = val if validated else val[:0]
    examples = Examples(inputs, labels, ids, rows, val, np.ones(2))
    outcome = train_network(network, examples, recipe, **options)
    return network, outcome


def bytes_of(network):
    return b"".join(v.numpy().tobytes() for v in network.state_dict().values())


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "amsgrad", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_it_learns_and_repeats(problem, optimizer, schedule):
    lr = 0.1 if optimizer == "sgd" else 1e-2
    recipe = RECIPE.model_copy(update={"optimizer": optimizer, "schedule": schedule, "lr": lr})
    network, outcome = train(problem, recipe=recipe)
    assert outcome.history[0]["val_accuracy"] < 0.8 < outcome.history[-1]["val_accuracy"]
    assert outcome.history[-1]["train_loss"] < outcome.history[1]["train_loss"]
    assert outcome.probabilities.shape == (30, 2)
    again, _ = train(problem, recipe=recipe)
    assert bytes_of(network) == bytes_of(again)


@pytest.mark.parametrize(
    "change",
    [
        {"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}, {"label_smoothing": 0.2},
        {"ema": 0.9}, {"clip": 0.5}, {"weight_decay": 0.5}, {"wise_ft": True},
        {"train_precision": "bf16"}, {"batch": 7}, {"warmup": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_every_part_of_a_recipe_changes_the_weights_and_still_learns(problem, change):
    plain, _ = train(problem)
    network, outcome = train(problem, recipe=RECIPE.model_copy(update=change))
    if not (change.get("wise_ft") and outcome.wise_ft == 1.0):
        assert bytes_of(network) != bytes_of(plain)
    assert outcome.history[outcome.best_epoch]["val_accuracy"] > 0.8


def test_another_seed_draws_otherwise(problem):
    first, other = (train(problem, seed=seed)[0] for seed in (0, 1))
    assert bytes_of(first) != bytes_of(other)


def test_the_best_epoch_is_kept(problem):
    recipe = RECIPE.model_copy(update={"lr": 0.3, "schedule": "constant", "epochs": 12})
    network, outcome = train(problem, recipe=recipe)
    losses = [h["val_loss"] for h in outcome.history]
    assert outcome.best_epoch == int(np.argmin(losses))
    assert losses[-1] > min(losses)
    inputs, labels, _, _, val_rows = problem
    with torch.inference_mode():
        logits = network(next(inputs.read([(val_rows, val_rows)])))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[val_rows]))
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)
    assert outcome.probabilities == pytest.approx(logits.softmax(1).numpy(), abs=1e-6)


def test_without_validation_the_last_epoch_is_kept(problem):
    _, outcome = train(problem, validated=False)
    assert outcome.best_epoch == RECIPE.epochs
    assert outcome.probabilities is None
    assert "val_loss" not in outcome.history[1]


def test_it_stops_when_nothing_improves(problem):
    recipe = RECIPE.model_copy(update={"lr": 1e-9, "epochs": 50, "patience": 3, "min_delta": 1e-3})
    _, outcome = train(problem, recipe=recipe)
    assert len(outcome.history) == 1 + 3
    assert outcome.best_epoch == 0


def test_no_decay_on_vectors_and_slower_below():
    """A huge decay empties the matrices alone; a scale of zero keeps what it is for."""
    rng = np.random.default_rng(0)
    inputs = MatrixInputs(rng.normal(size=(40, 6)))
    labels, ids = np.arange(40) % 2, tuple(map(str, range(40)))
    network = make_network()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    recipe = Recipe(epochs=3, batch=8, lr=0.1, weight_decay=9.0, warmup=0.0, schedule="constant",
                    train_precision="fp32")  # fmt: skip
    names = [n for n, _ in network.named_parameters()]
    examples = Examples(inputs, labels, ids, np.arange(40), np.arange(0), np.ones(2))
    train_network(network, examples, recipe, scales={names[0]: 0.0, names[1]: 0.0})
    after = network.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in names[:2])
    assert float(after[names[2]].abs().mean()) < 0.5 * float(before[names[2]].abs().mean())


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_the_rate_rises_and_falls(schedule):
    recipe = RECIPE.model_copy(update={"schedule": schedule, "warmup": 0.1})
    rates = [learning_rate_factor(step, 100, recipe) for step in range(100)]
    assert all(0 < r <= 1 for r in rates)
    top = int(np.argmax(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert max(rates) == pytest.approx(1)
    assert rates[-1] == 1 if schedule == "constant" else rates[-1] < 0.01
    assert top == pytest.approx(30 if schedule == "one-cycle" else 10, abs=1.5)


def test_every_view_is_seen_in_turn():
    seen = [view_of("a.png", epoch, 4, 0) for epoch in range(1, 9)]
    assert sorted(seen[:4]) == sorted(seen[4:]) == [0, 1, 2, 3]
    firsts = {view_of(f"{n}.png", 1, 4, 0) for n in range(50)}
    assert firsts == {0, 1, 2, 3}
    assert [view_of("a.png", e, None, 0) for e in (1, 2, 9)] == [1, 2, 9]


def test_a_loss_that_is_no_number_is_told(problem):
    inputs, labels, ids, rows, val_rows = problem
    matrix = inputs._matrix.numpy().copy()
    matrix[17] = np.nan
    with pytest.raises(
        TrainingError, match=r"loss is nan at step \d of epoch 1 \(images '.*--lr than"
    ):
        train((MatrixInputs(matrix), labels, ids, rows, val_rows))


class Greedy(nn.Module):
    """Runs out of memory on more than so many images."""

    def __init__(self, most):
        super().__init__()
        self.inside, self.most = make_network(), most

    def forward(self, x):
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("too much")
        return self.inside(x)


def test_short_memory_halves_the_parts_and_not_the_step(problem):
    plain, _ = train(problem)
    network, outcome = train(problem, Greedy(5))
    for one, other in zip(plain.parameters(), network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert len(outcome.history) == RECIPE.epochs + 1
    with pytest.raises(ResourceError, match="one image at a time"):
        train(problem, Greedy(0))


def test_short_memory_while_measuring_is_no_end(problem):
    network = Greedy(5)
    network.unused = nn.Parameter(torch.zeros(1_000_000), requires_grad=False)
    recipe = RECIPE.model_copy(update={"epochs": 20, "train_precision": "auto"})
    assert train(problem, network, recipe)[1].precision == "bf16"


def test_no_image_of_an_epoch_is_left_for_a_part_of_its_own(problem):
    """BatchNorm cannot take the variance of one."""
    inputs, labels, ids, rows, val_rows = problem
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    _, outcome = train((inputs, labels, ids, rows[:17], val_rows), network)
    assert len(outcome.history) == RECIPE.epochs + 1


@pytest.mark.parametrize("axis", [1, 3])
def test_cutmix_takes_all_channels_of_a_place(problem, axis):
    """Activations have their channels first or last; a place is of one image, with all of them."""
    _, labels, ids, rows, val_rows = problem
    shape = [8, 8]
    shape.insert(axis - 1, 5)

    class Squares:
        views = 1

        def __init__(self):
            self.axis = axis

        def read(self, batches):
            for rows, _ in batches:
                yield torch.from_numpy(rows).float().view(-1, 1, 1, 1).expand(-1, *shape)

    seen = []

    class Look(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(1, 2)

        def forward(self, x):
            if self.training:
                seen.append(x.movedim(axis, 1))
            return self.inside(x.mean(dim=(1, 2, 3)).view(-1, 1) / 120)

    train(
        (Squares(), labels, ids, rows, val_rows), Look(), RECIPE.model_copy(update={"cutmix": 1.0})
    )
    assert any(len(x[0].unique()) == 2 for x in seen)
    for x in seen:
        assert torch.equal(x, x[:, :1].expand_as(x))


# ---------------------------------------------------------------- going on


class Death(Exception):
    pass


def test_a_training_goes_on_from_its_checkpoint_to_the_same_bytes(problem, tmp_path):
    recipe = RECIPE.model_copy(
        update={"checkpoint_s": 0.0, "ema": 0.9, "mixup": 0.2, "optimizer": "amsgrad"}
    )
    whole, told = train(problem, make_network(dropout=0.3), recipe)
    for stop in (1, 3, 20, 33, 47):
        steps = 0

        def progress(stage, done, total, most=stop):
            nonlocal steps
            steps += 1
            if steps > most:
                raise Death

        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Death):
            train(
                problem, make_network(dropout=0.3), recipe, place=Place(path), watch=Watch(progress)
            )
        network, outcome = train(problem, make_network(dropout=0.3), recipe, place=Place(path))
        assert bytes_of(network) == bytes_of(whole)
        assert [h.get("val_loss") for h in outcome.history] == [h["val_loss"] for h in told.history]


def test_a_checkpoint_of_something_else_is_refused(problem, tmp_path):
    path = tmp_path / "c.safetensors"
    train(
        problem,
        recipe=RECIPE.model_copy(update={"checkpoint_s": 0.0}),
        place=Place(path, identity="a"),
    )
    with pytest.raises(InputError, match="of other data or settings"):
        train(problem, place=Place(path, identity="b"))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        train(problem, place=Place(path, identity="a"))


OPTIONS = ["--strategy", "partial-fine-tune", "--cut", "blocks.3", "--views", "2", "--epochs", "6",
           "--batch", "4", "--lr", "1e-3", "--train-precision", "fp32", "--checkpoint-s", "0",
           "--val", "0.25", "--flip", "yes"]  # fmt: skip


@pytest.fixture(scope="module")
def options(tiny):
    """The options of a fit, without data and output."""
    network = ["--backbone", tiny["backbone"], "--weights", tiny["weights"], "--device", "cpu"]
    return [*OPTIONS, *network]


@pytest.fixture(scope="module")
def uninterrupted(options, loose, tmp_path_factory):
    """(model.safetensors, seconds) of a fit that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_command("fit", loose, "-o", folder, *options)[0] == 0
    began = time.monotonic()
    assert run_command("fit", loose, "-o", folder, "--overwrite", *options)[0] == 0
    return (folder / "model.safetensors").read_bytes(), time.monotonic() - began


def finish(options, folder, data):
    """Go on until the run is whole: --resume, or anew where it died before it could be resumed."""
    code, _, errors = run_command("fit", "--resume", folder)
    card = folder / "headstart.json"
    whole = card.exists() and json.loads(card.read_text())["status"] == "complete"
    if code and not whole:
        assert "no interrupted training to resume" in errors
        code, _, errors = run_command("fit", data, "-o", folder, *options)
        assert code == 0, errors
    return (folder / "model.safetensors").read_bytes()


def test_killed_at_any_moment_the_weights_are_those_of_one_never_killed(
    options, uninterrupted, loose, tmp_path
):
    whole, seconds = uninterrupted
    rng = random.Random(0)
    killed = trained = 0
    for number in range(KILLS):
        folder = tmp_path / f"run{number}"
        with Forked(COMMAND, "fit", loose, "-o", folder, *options) as process:
            # Some moment after the first checkpoint, or, now and then, any moment at all.
            if number % 5:
                deadline = time.monotonic() + 300
                while not (folder / "checkpoint.safetensors").exists() and process.running:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.15 * seconds))
            else:
                time.sleep(rng.uniform(0, seconds))
            process.kill()
            if process.wait()[0] == -signal.SIGKILL:
                killed += 1
            else:  # the machine has become quicker
                seconds *= 0.7
        trained += (folder / "checkpoint.safetensors").exists()
        assert finish(options, folder, loose) == whole
        assert (
            sorted(p.name for p in folder.iterdir() if p.name.startswith(("start", "check"))) == []
        )
        shutil.rmtree(folder)
    assert killed >= KILLS * 0.6
    assert trained >= KILLS * 0.4


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_a_checkpoint(options, uninterrupted, loose, tmp_path, step):
    folder = tmp_path / "run"
    point = f"checkpoint-{step}"
    code, _, _ = run_command("fit", loose, "-o", folder, *options, HEADSTART_FAIL_AT=point)
    assert code == -signal.SIGKILL
    assert finish(options, folder, loose) == uninterrupted[0]


def test_a_full_disk_at_a_checkpoint_is_told(options, loose, tmp_path, uninterrupted):
    folder = tmp_path / "run"
    point = "checkpoint-written:enospc"
    code, _, errors = run_command("fit", loose, "-o", folder, *options, HEADSTART_FAIL_AT=point)
    assert code == 5
    assert "No space left" in errors
    assert finish(options, folder, loose) == uninterrupted[0]


def cpu_seconds(pid):
    """What a running process has had of its processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_keeps_the_best_model_so_far(options, loose, tmp_path):
    folder = tmp_path / "run"
    longer = [*options, "--overwrite"]
    longer[longer.index("--epochs") + 1] = "2000"
    # A start of Python as a user's; what follows it is forked.
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", "fit", str(loose), "-o", str(folder), *longer],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    history = folder / "history.jsonl"
    deadline = time.monotonic() + 300
    while not history.exists() or history.read_text().count("\n") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = cpu_seconds(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Five seconds of two processors, which others may have in the meantime.
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert whole - spent < 5 * 2
    assert process.returncode == 130, errors
    assert "best model so far is kept" in errors
    assert f"headstart fit --resume {folder}" in errors
    kept = Classifier.load(folder)
    assert next(headstart.predict(kept, [next((loose / "plain").iterdir())])).error == ""
    epochs = len(history.read_text().splitlines())
    code, _, errors = run_command("fit", "--resume", folder, "--epochs", "3")
    assert code == 2
    assert "'epochs' cannot change on resume" in errors
    with Forked(COMMAND, "fit", "--resume", folder):
        deadline = time.monotonic() + 300
        while len(history.read_text().splitlines()) <= epochs + 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_resume_refuses_what_it_cannot_go_on_from(loose, plant, tmp_path, tiny):
    with pytest.raises(
        UsageError, match=r"no interrupted training to resume here; headstart fit DATA -o"
    ):
        headstart.fit(None, tmp_path / "none", resume=True)
    data = plant(tmp_path / "data", dict.fromkeys(("blobs", "plain"), 6))
    options = {**tiny, "strategy": "fine-tune", "epochs": 3, "batch": 4, "checkpoint_s": 0.0}

    def stop(entry):
        if entry["epoch"] == 1:
            raise Death

    with pytest.raises(Death):
        headstart.fit(data, tmp_path / "run", on_epoch=stop, **options)
    with pytest.raises(UsageError, match="cannot change on resume"):
        headstart.fit(None, tmp_path / "run", resume=True, seed=3)
    with pytest.raises(UsageError, match="overwrite has no effect with resume"):
        headstart.fit(None, tmp_path / "run", resume=True, overwrite=True)
    # What took hours is not lost by the same command.
    with pytest.raises(
        UsageError, match=r"interrupted training; headstart fit --resume .*run goes on"
    ):
        headstart.fit(data, tmp_path / "run", **options)
    # A folder may come from anywhere.
    start = tmp_path / "run/start.json"
    told = start.read_text()
    for name, value in (("allow_outside", True), ("max_pixels", 10**12)):
        changed = json.loads(told)
        changed["options"][name] = value
        start.write_text(json.dumps(changed))
        with pytest.raises(
            UsageError, match=f"started with {name} {value}, which is not taken from"
        ):
            headstart.fit(None, tmp_path / "run", resume=True)
    start.write_text(told)
    for image in (data / "plain").iterdir():
        image.unlink()
        break
    with pytest.raises(InputError, match="of other data or settings"):
        headstart.fit(None, tmp_path / "run", resume=True)


# ---------------------------------------------------------------- the network above a cut


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet", "test_efficientnet"])
def test_a_folded_norm_has_the_same_gradients(name):
    """Convolution and frozen norm as one give the loss and every gradient of the two apart."""
    backbone = load_backbone(name, random_weights=True, input_px=64)
    rng = np.random.default_rng(0)
    state = {}
    for key, value in backbone.state.items():
        noise = rng.normal(0, 0.1, value.shape)
        changed = rng.uniform(0.5, 2, value.shape) if "running_var" in key else value + noise
        state[key] = changed.astype(value.dtype) if value.dtype == np.float32 else value
    backbone = with_state(backbone, state, "test")
    head = LinearHead(rng.normal(0, 0.1, (3, backbone.cuts[-1].channels)).astype(np.float32),
                      np.zeros(3, np.float32))  # fmt: skip
    pixels = torch.from_numpy(rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
    found = {}
    for kind in ("frozen", "adapt"):
        network = TrainableNetwork(
            backbone, None, module_of_head(head, parse_head("linear")), batchnorm=kind
        ).double()
        # The reference: the network as it is, its norms in evaluation mode.
        network = network.train() if kind == "frozen" else network.eval()
        loss = network(pixels).square().mean()
        loss.backward()
        state_names = [network._original(n) for n, _ in network.body.named_parameters()]
        gradients = [p.grad for _, p in network.body.named_parameters()]
        found[kind] = (
            loss.item(),
            dict(zip(state_names, gradients, strict=True)),
            network.body_state(),
        )
    assert found["frozen"][0] == pytest.approx(found["adapt"][0], rel=1e-4)
    assert set(found["frozen"][2]) == set(found["adapt"][2])
    for key, gradient in found["adapt"][1].items():
        scale = float(gradient.abs().max()) + 1e-6
        assert float((found["frozen"][1][key] - gradient).abs().max()) < 1e-6 * scale, key


def test_the_part_above_a_cut_gives_what_the_whole_does():
    backbone = load_backbone("test_resnet", random_weights=True)
    head = LinearHead(np.ones((2, backbone.cuts[-1].channels), np.float32), np.zeros(2, np.float32))
    pixels = np.random.default_rng(0).integers(
        0, 256, (4, *backbone.preprocessing.input_px, 3), dtype=np.uint8
    )
    whole = TrainableNetwork(backbone, None, module_of_head(head, parse_head("linear"))).eval()
    runtime = headstart.Runtime(engine="torch", precision="fp32", device="cpu")
    with torch.inference_mode():
        expected = whole(torch.from_numpy(pixels))
        for cut in backbone.cuts[:-1]:
            engine, _ = headstart.start_engine(backbone, runtime, cuts=(cut.name,), pooled=False)
            below = torch.from_numpy(engine.run(pixels)[cut.name])
            tail = TrainableNetwork(
                backbone, cut.name, module_of_head(head, parse_head("linear"))
            ).eval()
            assert torch.allclose(tail(below), expected, rtol=1e-3, atol=1e-4), cut.name
            assert set(tail.body_state()) < set(whole.body_state())


@pytest.mark.parametrize("notation", ["linear", "8", "d0.5-16-d0.5-8"])
def test_heads_and_modules_are_the_same(notation):
    shape = parse_head(notation)
    module = new_head(shape, 5, 3, seed=1).eval()
    head = head_of_module(module)
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(features)).softmax(1).numpy()
    assert head.predict_proba(features) == pytest.approx(expected, abs=1e-5)
    again = module_of_head(head, shape).eval()
    assert [type(m) for m in again] == [type(m) for m in module]
    assert bytes_of(again) == bytes_of(module)


def test_history_is_json(problem, tmp_path):
    train(problem, place=Place(history=tmp_path / "history.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(RECIPE.epochs + 1))


def test_history_is_json_where_validation_overflows(problem, tmp_path):
    inputs, labels, ids, rows, val_rows = problem
    matrix = inputs._matrix.numpy().copy()
    matrix[val_rows] = np.inf
    train(
        (MatrixInputs(matrix), labels, ids, rows, val_rows),
        place=Place(history=tmp_path / "history.jsonl"),
    )
    last = (tmp_path / "history.jsonl").read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=pytest.fail)["val_loss"] is None
