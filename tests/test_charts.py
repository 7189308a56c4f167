"""The evidence of the advice as pictures, and as the command shows it."""

import json
import xml.etree.ElementTree

import pytest

import headstart
from headstart.publish.charts import CHARTS, draw_chart, write_advice


def test_every_picture_is_drawn_with_its_figures_as_text(advice, tmp_path):
    paths = write_advice(advice, tmp_path / "advice")
    assert [p.name for p in paths] == ["advice.json", *(f"{name}.svg" for name in CHARTS)]
    for path in paths[1:]:
        root = xml.etree.ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
    depth, images, cost = (p.read_text(encoding="utf-8") for p in paths[1:])
    assert all(d.cut in depth for d in advice.facts.singles)
    assert "these 24 images" in images
    assert advice.chosen.strategy.replace("partial-fine-tune", "partial") in cost


def test_a_picture_repeats_byte_by_byte(advice, tmp_path):
    first, second = (write_advice(advice, tmp_path / n) for n in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


@pytest.mark.parametrize("name", CHARTS)
def test_a_picture_has_named_axes_and_a_title(advice, name):
    [axes] = draw_chart(name, advice).axes
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert axes.get_title(loc="left")


def test_where_nothing_was_measured_nothing_is_drawn(plant, tmp_path, network):
    data = plant(tmp_path / "few", {"blobs": 1, "plain": 1})
    advice = headstart.advise(data, **network)
    assert [p.name for p in write_advice(advice, tmp_path / "advice")] == ["advice.json"]


def test_a_folder_that_cannot_be_made_is_told(advice, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(headstart.ResourceError, match="choose another folder"):
        write_advice(advice, tmp_path / "taken")


def options_of(network):
    return [word for name, value in network.items() for word in (f"--{name}", value)]


def test_the_command_shows_what_is_advised_and_why(loose, network, tmp_path, cli):
    output = tmp_path / "advice"
    code, out, err = cli("advise", loose, *options_of(network), "-o", output)
    assert code == 0
    assert out.startswith("case ")
    assert "advice: " in out
    assert "95 % interval" in out
    assert "learning curve" in out
    assert f"headstart fit {loose}" in err
    assert (output / "cost.svg").exists()


def test_the_command_finds_out_first_whether_it_can_write(loose, tmp_path, cli, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(headstart, "advise", lambda *args, **options: pytest.fail("too late"))
    code, _, err = cli("advise", loose, "-o", tmp_path / "taken")
    assert code == 5
    assert "choose another folder" in err


def test_the_command_prints_json_for_programs(loose, network, cli):
    code, out, _ = cli("advise", loose, *options_of(network), "--json")
    assert code == 0
    value = json.loads(out)
    assert value["case"]["words"]
    assert value["chosen"]["strategy"]
    assert value["facts"]["images"] == 24


def test_the_command_refuses_what_it_cannot_take(loose, cli):
    code, _, err = cli("advise", loose, "--strategy", "scratch")
    assert code == 2
    assert "--strategy" in err
    code, _, err = cli("advise", loose, "--budget", "5")
    assert code == 2
    assert "90s, 10m or 1h" in err


def test_fit_says_what_it_follows(loose, network, tmp_path, cli):
    code, _, err = cli(
        "fit", loose, "-o", tmp_path / "run", *options_of(network), "--budget", "30s"
    )
    assert code == 0
    assert "following the advice: " in err
    assert "that are left" in err
