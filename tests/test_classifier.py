"""A saved classifier predicts as before, timm loads it too, and a damaged one is refused."""

import dataclasses
import hashlib
import json
import math
import shutil

import numpy as np
import openvino
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

import headstart.networks.building
import headstart.runs.prediction
from headstart import Classifier, InputError, UsageError, predict
from headstart.errors import VerificationError
from headstart.networks.backbones import backbone_of_state, with_state
from headstart.training.heads import LinearHead


def files(photos):
    return sorted(str(path) for path in photos.rglob("*.png"))


@pytest.mark.parametrize("name", ["run", "tiny_run"])
def test_a_saved_classifier_predicts_as_before(name, request, photos):
    run = request.getfixturevalue(name)
    saved = Classifier.load(run.folder)
    names = files(photos)[::5]
    before = list(run.classifier.predict(names, device="cpu"))
    assert list(saved.predict(names, device="cpu")) == before
    assert saved.classes == run.classifier.classes == ("blobs", "plain", "stripes")
    assert saved.backbone.fingerprint == run.classifier.backbone.fingerprint
    assert (saved.cuts, saved.strategy, saved.seed) == (run.classifier.cuts, "linear-probe", 0)
    assert saved.backbone.weights == run.classifier.backbone.weights


def test_what_people_call_the_classes_is_saved(tiny_run, photos, tmp_path):
    names = ("Kleckse", "ein \u00dcbriges", "\u6761\u7eb9")
    named = dataclasses.replace(tiny_run.classifier, names=names)
    named.save(tmp_path / "named")
    saved = Classifier.load(tmp_path / "named")
    assert saved.names == names
    (found,) = predict(tmp_path / "named", photos / "test/plain/50.png", device="cpu")
    assert dict(zip([c for c, _ in found.top], found.names, strict=True))["plain"] == names[1]
    card(names=["two", "names"])(tmp_path / "named")
    with pytest.raises(InputError, match=r"headstart\.json: has 2 names for 3 classes"):
        Classifier.load(tmp_path / "named")


@pytest.mark.parametrize("name", ["run", "tiny_run"])
def test_timm_gives_the_same_probabilities(name, request, photos):
    run = request.getfixturevalue(name)
    names = files(photos)[::7]
    model = timm.create_model(f"local-dir:{run.folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        batch = torch.stack([transform(Image.open(n).convert("RGB")) for n in names])
        expected = model(batch).softmax(dim=1).numpy()
    assert model.num_classes == 3
    assert model.pretrained_cfg["label_names"] == ["blobs", "plain", "stripes"]
    for row, found in zip(expected, run.classifier.predict(names, device="cpu"), strict=True):
        shares = dict(found.top)
        assert [shares[c] for c in run.classifier.classes] == pytest.approx(row, abs=1e-5)


def test_predictions(tiny_run, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"text")
    names = files(photos)
    order = [names[0], str(bad), *names[1:20], str(tmp_path / "missing"), names[0]]
    steps = []
    found = list(
        tiny_run.classifier.predict(
            order, top=2, device="cpu", progress=lambda *step: steps.append(step)
        )
    )
    assert [p.image for p in found] == order
    assert found[0] == found[-1]
    for prediction in (found[1], found[-2]):
        assert (prediction.label, prediction.top) == ("", ())
        assert math.isnan(prediction.probability)
    assert found[1].error == "not an image: text"
    assert found[-2].error == "no such file or directory"
    for prediction in (found[0], *found[2:-2]):
        assert prediction.error == ""
        assert prediction.top[0] == (prediction.label, prediction.probability)
        assert len(prediction.top) == 2
        assert 1 >= prediction.top[0][1] >= prediction.top[1][1] >= 0
    assert steps[-1] == ("reading images", len(order), len(order))
    (all_of_them,) = tiny_run.classifier.predict(names[:1], top=99, device="cpu")
    assert sum(share for _, share in all_of_them.top) == pytest.approx(1, abs=1e-5)
    assert list(tiny_run.classifier.predict([], device="cpu")) == []


def test_what_goes_with_an_image_changes_nothing(tiny_run, photos):
    names = files(photos)
    whole = list(tiny_run.classifier.predict(names, device="cpu", workers=3))
    alone = [next(tiny_run.classifier.predict([n], device="cpu")) for n in names[:4]]
    assert alone == whole[:4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top must be a whole number of at least 1, got 0"),
        ({"top": 1.5}, "top must be a whole number of at least 1, got 1.5"),
        ({"workers": 0}, "workers must be greater than or equal to 1, got 0"),
        ({"device": "cudo"}, "'cudo' is unknown"),
    ],
)
def test_wrong_options_are_refused_at_the_call(options, message, tiny_run):
    with pytest.raises(UsageError, match=message):
        tiny_run.classifier.predict(["a.png"], **options)


def test_images_in_memory_are_those_of_the_file(tiny_run, photos):
    path = photos / "test/plain/50.png"
    data, opened = path.read_bytes(), Image.open(path)
    pixels = np.asarray(Image.open(path))
    (expected,) = predict(tiny_run, path, device="cpu")
    kinds = [str(path), path, data, bytearray(data), pixels, opened, opened, Image.open(path)]
    found = list(predict(tiny_run, kinds, device="cpu"))
    assert [p.top for p in found] == [expected.top] * len(kinds)
    assert [p.image for p in found] == [str(path)] * 2 + [f"image {n}" for n in range(3, 9)]
    for one in kinds:  # each of them alone, of whatever calls itself a model
        (alone,) = predict(tiny_run.folder, one, device="cpu")
        assert alone.top == expected.top
    (found,) = tiny_run.classifier.predict(np.stack([pixels]), device="cpu")
    assert (found.top, found.image) == (expected.top, "image 1")
    (found,) = predict(tiny_run, iter([opened]), device="cpu")
    assert found.top == expected.top


def test_pillows_images_are_turned_and_converted_as_files_are(tiny_run, paint, tmp_path):
    grey = Image.fromarray(paint("blobs", 3)).convert("LA")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(paint("plain", 3)).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    grey.save(tmp_path / "grey.png")
    for name in ("turned.jpg", "grey.png"):
        file, memory = predict(tiny_run, [tmp_path / name, Image.open(tmp_path / name)])
        assert file.top == memory.top
    (bad,) = predict(tiny_run, b"text")
    assert (bad.image, bad.error) == ("image 1", "not an image: text")
    large = next(predict(tiny_run, [Image.new("RGB", (9, 9))], max_pixels=80))
    assert large.error == "9 x 9 is more than 80 pixels"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "the image is of type int; give a path, bytes, a uint8 array"),
        (None, "the image is of type NoneType"),
        ([b"", 3.5], "image 2 is of type float"),
        (["a.png", None], "image 2 is of type NoneType"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"the image is an array of uint8 \(3, 8, 8\); give uint8 \(hei",
        ),
        ([np.zeros((8, 8, 3), np.float32)], r"image 1 is an array of float32 \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), "the image is an array of uint8"),
        (np.zeros((0, 8, 3), np.uint8), "the image is an array of uint8"),
        (torch.zeros(8, 8, 3), "image 1 is of type Tensor"),
        ("", "the image is an empty name"),
        (["a", ""], "image 2 is an empty name"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_is_no_image_is_refused_at_the_call(images, message, tiny_run):
    with pytest.raises(UsageError, match=message):
        predict(tiny_run, images)
    with pytest.raises(UsageError, match=message):
        tiny_run.classifier.predict(images)


def test_an_array_of_paths_is_many_images(tiny_run, photos):
    names = files(photos)[:2]
    for array in (np.array(names), np.array(names, dtype=object)):
        assert [p.image for p in predict(tiny_run, array, device="cpu")] == names


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_unreadable(size, tiny_run):
    (found,) = predict(tiny_run, Image.new("RGB", size), device="cpu")
    assert "has no pixels" in found.error


def test_a_folder_of_other_files_is_not_saved_to(tiny_run, tmp_path):
    (tmp_path / "settings.json").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        tiny_run.classifier.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]
    assert (tmp_path / "settings.json").read_text() == "mine"


def test_one_engine_serves_a_call(tiny_run, photos, monkeypatch):
    made = []
    make = headstart.runs.prediction.make_engine

    def count(*arguments, **options):
        made.append(1)
        return make(*arguments, **options)

    monkeypatch.setattr(headstart.runs.prediction, "make_engine", count)
    assert len(list(predict(tiny_run, [photos, photos / "test"]))) == 42
    assert made == [1]


def test_files_and_folders_are_read_in_order(tiny_run, tmp_path, photos):
    def images(*sources):
        return [p.image for p in predict(tiny_run.folder, sources, device="cpu")]

    found = images(photos / "test", "x.png", photos / "test/plain/50.png")
    assert found[:2] == [str(photos / f"test/blobs/5{n}.png") for n in (0, 1)]
    assert found[9:] == ["x.png", str(photos / "test/plain/50.png")]
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="no images in this folder"):
        images(tmp_path)
    with pytest.raises(InputError, match="no images given; name files or folders"):
        images()


def test_a_link_out_of_a_folder_is_not_followed(tiny_run, plant, photos, tmp_path):
    folder = plant(tmp_path / "new", {"plain": 1})
    (folder / "plain/link.png").symlink_to(photos / "train/blobs/00.png")
    good, link = predict(tiny_run.folder, [folder], device="cpu")
    assert (good.label, good.error, link.label) == ("plain", "", "")
    assert link.error.startswith("link leads outside of the data folder")
    (named,) = predict(tiny_run.folder, [link.image], device="cpu")
    assert named.error == ""  # who names a link means it


# ---------------------------------------------------------------- damaged folders


@pytest.fixture
def copy(tiny_run, tmp_path):
    return shutil.copytree(tiny_run.folder, tmp_path / "copy")


def edit(name, change):
    """A function (folder) that changes a JSON file."""

    def apply(folder):
        value = json.loads((folder / name).read_text())
        value = change(value) or value
        (folder / name).write_text(json.dumps(value))

    return apply


def card(**values):
    return edit("headstart.json", lambda c: c.update(values))


def how(**values):
    return edit("config.json", lambda c: c["pretrained_cfg"].update(values))


def without(key):
    return edit("config.json", lambda c: c["pretrained_cfg"].pop(key) and None)


def flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def cut(name, share):
    def apply(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return apply


def replace_model(data):
    """A model whose checksum is right and whose content is not."""

    def apply(folder):
        (folder / "model.safetensors").write_bytes(data)
        card(model_sha256=hashlib.sha256(data).hexdigest())(folder)

    return apply


def tensors(change):
    """A function (folder) that changes the tensors of a model, with the right checksum."""

    def apply(folder):
        state = load_arrays((folder / "model.safetensors").read_bytes())
        state = {k: np.array(v) for k, v in state.items()}
        change(state)
        replace_model(save_arrays(state))(folder)

    return apply


def put(name, value, place=0):
    return tensors(lambda s: s[name].reshape(-1).__setitem__(place, value))


def reshape(name, change):
    return tensors(lambda s: s.update({name: np.ascontiguousarray(change(s[name]))}))


def negative_variance(folder):
    """Of a network with BatchNorm in the place of the one that is there."""
    backbone = headstart.load_backbone()
    state = {**backbone.state, "bn1.running_var": -backbone.state["bn1.running_var"]}
    changed = dataclasses.replace(backbone, state=state)
    head = LinearHead(np.zeros((3, 1280), np.float32), np.zeros(3, np.float32))
    for path in folder.iterdir():
        path.unlink()
    Classifier(changed, head, ("classifier",), ("a", "b", "c"), "linear-probe").save(folder)


def deep(folder):
    (folder / "headstart.json").write_text("[" * 100_000)


INF, NAN = math.inf, math.nan

DAMAGE = {
    "a bit of the model": flip,
    "model truncated": cut("model.safetensors", 0.5),
    "model empty": cut("model.safetensors", 0),
    "model missing": lambda f: (f / "model.safetensors").unlink(),
    "model a folder": lambda f: (
        (f / "model.safetensors").unlink() or (f / "model.safetensors").mkdir()
    ),
    "model of text": replace_model(b"not tensors" * 100),
    "model of a huge header": replace_model(b"\xff" * 8 + b"{}"),
    "model of nothing": replace_model(b"\x02" + bytes(7) + b"{}"),
    "card truncated": cut("headstart.json", 0.5),
    "card empty": cut("headstart.json", 0),
    "card missing": lambda f: (f / "headstart.json").unlink(),
    "card not UTF-8": lambda f: (f / "headstart.json").write_bytes(b"\xff\xfe{}"),
    "card too deep": deep,
    "card a list": lambda f: (f / "headstart.json").write_text("[]"),
    "card a number": lambda f: (f / "headstart.json").write_text("1"),
    "card of nothing": lambda f: (f / "headstart.json").write_text("{}"),
    **{
        f"{value} in {name}": put(name, value)
        for value in (NAN, INF, -INF)
        for name in ("head.weight", "head.bias", "blocks.0.mlp.fc1.weight", "norm.bias")
    },
    "a negative variance": negative_variance,
    "a longer bias": reshape("head.bias", lambda b: np.append(b, b[:1])),
    "a shorter bias": reshape("head.bias", lambda b: b[:-1]),
    "a bias of two axes": reshape("head.bias", lambda b: b[None]),
    "no bias": tensors(lambda s: s.pop("head.bias")),
    "a wider head": reshape("head.weight", lambda w: np.concatenate([w, w[:, :1]], axis=1)),
    "a head of 3 x 3": reshape("head.weight", lambda w: w[:, :, None, None].repeat(3, 2)),
    "a head of one axis": reshape("head.weight", np.ravel),
    "another layer's shape": reshape("blocks.0.mlp.fc1.weight", lambda w: w[:-1]),
    "a tensor too many": tensors(lambda s: s.update(other=np.ones(3, np.float32))),
    "a tensor too few": tensors(lambda s: s.pop("norm.bias")),
    "a tensor too many in the head": tensors(lambda s: s.update({"head.x": s["head.bias"]})),
    "newer format": card(format=3),
    "format of text": card(format="x"),
    "format not a number": card(format=NAN),
    "unknown status": card(status="nearly"),
    "incomplete": card(status="incomplete"),
    "classes of text": card(classes="abc"),
    "classes of numbers": card(classes=[1, 2, 3]),
    "no classes": card(classes=[]),
    "one class": card(classes=["a"]),
    "the same class twice": card(classes=["a", "b", "a"]),
    "more classes": card(classes=["a", "b", "c", "d"]),
    "unknown backbone": card(backbone="resnet5O"),
    "other backbone": card(backbone="test_resnet"),
    "backbone a path": card(backbone="../../test_vit"),
    "backbone from the hub": card(backbone="hf-hub:a/b"),
    "backbone a list": card(backbone=["test_vit"]),
    "unknown cut": card(cuts=["nowhere"]),
    "cut elsewhere": card(cuts=["blocks.1"]),
    "seed of text": card(seed="x"),
    "config empty": cut("config.json", 0),
    "config truncated": cut("config.json", 0.6),
    "config missing": lambda f: (f / "config.json").unlink(),
    "config of nothing": lambda f: (f / "config.json").write_text("{}"),
    "settings a list": edit("config.json", lambda c: c.update(pretrained_cfg=[1])),
    "settings missing": edit("config.json", lambda c: c.update(pretrained_cfg=None)),
    **{f"without {k}": without(k) for k in ("input_size", "mean", "std", "crop_pct")},
    **{
        f"input size {v}": how(input_size=v)
        for v in (
            [3, 10**9, 10**9],
            [3, INF, INF],
            [3, NAN, 160],
            [3, 0, 0],
            [3, -160, 160],
            [3, 160],
            [3, "a", "b"],
            [3, [160], 160],
            "160",
            160,
            None,
        )
    },
    **{f"mean {v}": how(mean=v) for v in (["0.5"] * 3, [NAN] * 3, [0.5], 0.5, "0.5", None)},
    **{f"std {v}": how(std=v) for v in ([0] * 3, [-1] * 3, [INF] * 3, [1] * 4, None)},
    **{f"crop share {v}": how(crop_pct=v) for v in (0, 1e-9, 2, NAN, "x", None, [1])},
    **{f"interpolation {v}": how(interpolation=v) for v in ("random", "", 3, None, ["bicubic"])},
    **{f"crop mode {v}": how(crop_mode=v) for v in ("border", 3, ["center"])},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_classifier_is_refused(name, copy):
    DAMAGE[name](copy)
    with pytest.raises(InputError) as caught:
        Classifier.load(copy)
    message = str(caught.value)
    assert message.startswith(str(copy))
    assert message.isprintable()
    assert len(message) < len(str(copy)) + 400


@pytest.mark.parametrize("giant", ["convnext_xxlarge", "vit_giant_patch14_clip_224", "vgg19"])
def test_a_giant_that_a_folder_names_is_not_built(giant, copy, monkeypatch):
    """Its shapes are compared without memory for its weights."""
    build = headstart.networks.building.build_network

    def watch(*arguments, **options):
        network = build(*arguments, **options)
        assert {p.device.type for p in network.parameters()} == {"meta"}
        return network

    monkeypatch.setattr(headstart.networks.building, "build_network", watch)
    card(backbone=giant)(copy)
    with pytest.raises(InputError, match=f"tensor '.*' (is none of|has the shape .*;) {giant}"):
        Classifier.load(copy)


def test_damage_to_a_head_on_all_cut_points_is_refused(photos, tiny, tmp_path):
    run = headstart.fit(photos, tmp_path / "run", cut="all", **tiny)
    for name, change in (
        ("headstart.head.weight", lambda s: s["headstart.head.weight"].__setitem__((0, 0), NAN)),
        ("head.weight", lambda s: s.update({"head.weight": s["head.weight"][:, :-1].copy()})),
        ("headstart.head.bias", lambda s: s.update({"headstart.head.bias": np.zeros(2, "f4")})),
    ):
        folder = shutil.copytree(run.folder, tmp_path / name)
        tensors(change)(folder)
        with pytest.raises(InputError, match=name.rpartition(".")[0]):
            Classifier.load(folder)


def test_loading_a_run_keeps_its_card_and_not_its_weights(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path))
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    put("norm.bias", 7.0)(folder)
    backbone = backbone_of(folder)
    card(backbone_fingerprint=backbone.fingerprint)(folder)
    kept = [p.name for p in (tmp_path / "backbones").rglob("*") if p.is_file()]
    assert kept == ["card.json"]
    monkeypatch.setattr(headstart.networks.building, "build_network", None)  # which the card spares
    assert Classifier.load(folder).backbone.cuts == tiny_run.classifier.backbone.cuts


def backbone_of(folder):
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    state = load_arrays((folder / "model.safetensors").read_bytes())
    return backbone_of_state("test_vit", state, config, classifier="head", weights="", end="head")


def test_what_a_run_left_in_the_cache_does_not_stand_in_for_the_network(
    tiny_run, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path))
    Classifier.load(tiny_run.folder)
    for _ in range(2):
        network = headstart.load_backbone(tiny["backbone"], weights=tiny["weights"])
        assert len(network.state["head.weight"]) == 5  # the network's classes, not the run's


@pytest.mark.parametrize(
    ("precision", "advice"), [("fp32", "fit again"), ("bf16", "use --precision fp32")]
)
def test_a_network_that_overflows_predicts_nothing(precision, advice, copy, photos):
    """Each weight is a number, and what they give is none."""
    put("norm.weight", 3e38, slice(None))(copy)
    card(backbone_fingerprint=backbone_of(copy).fingerprint)(copy)
    found = predict(copy, files(photos)[:3], device="cpu", precision=precision)
    with pytest.raises(VerificationError, match=f"NaN or infinite features at head; {advice}"):
        list(found)


@pytest.mark.parametrize(
    "values", [{"mean": [0.1, 0.5, 0.5]}, {"input_size": [3, 64, 64]}], ids=str
)
def test_pre_processing_that_is_not_the_recorded_one_is_refused(values, copy):
    how(**values)(copy)
    with pytest.raises(InputError, match=r"config\.json"):
        Classifier.load(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model missing", "model.safetensors: missing, or not a regular file"),
        ("a bit of the model", "model.safetensors: damaged"),
        ("newer format", "written by a newer headstart (format 3, this one reads up to 2)"),
        ("incomplete", "incomplete, its fit did not end; fit again with the same -o"),
        ("card missing", "not a run of headstart (no headstart.json in it)"),
        ("card truncated", "headstart.json: not JSON"),
    ],
)
def test_messages_say_what_to_do(name, message, copy):
    DAMAGE[name](copy)
    with pytest.raises(InputError) as caught:
        Classifier.load(copy)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", "missing", "file"])
def test_what_is_no_run_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"no such run|not a run of headstart"):
        Classifier.load(tmp_path / name)


def test_unknown_entries_are_passed_over(copy, tiny_run):
    card(added_later={"x": 1})(copy)
    edit("config.json", lambda c: c.update(added_later=1))(copy)
    assert Classifier.load(copy).classes == tiny_run.classifier.classes


def test_the_model_file_is_plain_tensors(tiny_run):
    from safetensors.numpy import load_file

    tensors = load_file(tiny_run.folder / "model.safetensors")
    assert np.array_equal(tensors["head.weight"], tiny_run.classifier.head.weight)
    assert all(np.isfinite(values).all() for values in tensors.values())


def test_a_network_that_openvino_refuses_is_run_by_pytorch(tiny_run, photos, tmp_path, monkeypatch):
    """At the first call: nobody has tried a network that was just trained."""
    backbone = tiny_run.classifier.backbone
    state = {name: values + np.float32(0.01) for name, values in backbone.state.items()}
    tuned = with_state(backbone, state, "trained")
    classifier = dataclasses.replace(tiny_run.classifier, backbone=tuned)
    right = list(classifier.predict(photos / "test", engine="torch", device="cpu"))

    def refuse(*arguments, **options):
        raise RuntimeError("no such operation: twirl")

    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(openvino.frontend.FrontEnd, "convert", refuse)
    assert list(classifier.predict(photos / "test", device="cpu")) == right
    with pytest.raises(UsageError, match="no such operation: twirl; use --engine torch"):
        list(classifier.predict(photos / "test", engine="openvino", device="cpu"))
