"""Recipes: every shipped one trains and samples, goes on where it was, and what is wrong in one is said in a sentence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdediff import UserError, load_model, sample
from sdediff.checkpoint import load_autoencoder, load_classifier, read
from sdediff.data import digits
from sdediff.latent_diffusion import LatentDiffusion, from_prior
from sdediff.networks import build
from sdediff.pretrained import feature_extractor
from sdediff.recipe import Recipe, configs, model_file, read_recipe, run

LARGE = {"ddpm-cifar10": (3, 32, 32), "adm-imagenet64": (3, 64, 64), "dit-xl-2": (4, 32, 32), "mnist": (1, 28, 28)}
SMALL = [name for name in configs() if name not in LARGE and name != "mnist-latent"]
PARAMETERS = {"ddpm-cifar10": 35.7e6, "adm-imagenet64": 296e6, "dit-xl-2": 675e6}
FAST = {"steps": 12, "batch": 32, "warmup": 2}


class Shape:
    """A source of which only the shape is known."""

    def __init__(self, shape, classes):
        self.name, self.shape, self.classes = "shape", shape, classes


def trained(name: str, folder: Path, **training) -> Recipe:
    recipe = read_recipe(name).changed(**training)
    if training:
        short = {k: {**getattr(recipe, k), "training": training} for k in ("classifier", "autoencoder") if getattr(recipe, k)}
        recipe = replace(recipe, **short)
    for _ in run(recipe, folder):
        pass
    return recipe


@pytest.mark.parametrize("name", SMALL)
def test_every_recipe_trains_and_samples(name, tmp_path):
    from sdediff.cli.drawing import draw_as

    recipe = trained(name, tmp_path, **FAST)
    path = tmp_path / model_file(recipe)
    if recipe.kind == "classifier":
        classifier = load_classifier(path)
        assert classifier(digits().x[:3], classifier.schedule.knot(0.5)).shape == (3, 10)
        return
    if recipe.kind == "autoencoder":
        net = load_autoencoder(path)
        assert from_prior(net, 3, (8, 8)).shape == (3, 1, 8, 8)
        return
    model = load_model(path)
    assert isinstance(model, LatentDiffusion) == (recipe.kind == "latent")
    few = replace(recipe, sampling={**recipe.sampling, "n": 10, **({"steps": 4} if "steps" in recipe.sampling else {})})
    if "tolerance" in few.sampling or "calls" in few.sampling:
        few = replace(few, sampling={**{k: v for k, v in few.sampling.items() if k not in ("tolerance", "calls")}, "calls": 12})
    draw_as(few, model, tmp_path / "samples.png", tmp_path)
    assert (tmp_path / "samples.png").stat().st_size > 1000
    again = read_recipe(tmp_path / "recipe.toml")  # what was done can be done again
    assert again == replace(recipe, name="recipe")


@pytest.mark.parametrize("name", LARGE)
def test_published_sizes(name):
    recipe = read_recipe(name)
    with torch.device("meta"):
        task = recipe.task(Shape(LARGE[name], 10 if name == "mnist" else 1000))  # type: ignore[arg-type]
    n = sum(p.numel() for p in task.net.parameters())
    assert n == pytest.approx(PARAMETERS.get(name, 1.15e6), rel=2e-3)


def test_a_recipe_goes_on_where_it_was(tmp_path):
    short = {"config": "autoencoder", "training": FAST}
    whole = replace(read_recipe("latent"), autoencoder=short).changed(**{**FAST, "steps": 60})  # a state is saved every 50
    list(run(whole, tmp_path / "whole"))
    stages = run(whole, tmp_path / "stopped")
    seen = [next(stages) for _ in range(12 + 55)]  # into the second network
    stages.close()
    assert (seen[0].folder.name, seen[0].model) == ("autoencoder", None)
    assert (seen[-1].folder.name, seen[-1].progress.step) == ("stopped", 55)
    assert isinstance(seen[-1].model, LatentDiffusion)
    again = [(stage.folder.name, stage.progress.step) for stage in run(whole, tmp_path / "stopped")]
    assert again == [("stopped", k) for k in range(51, 61)]
    one, two = (read(tmp_path / folder / "latent.safetensors")[0] for folder in ("whole", "stopped"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def made(config, changes=()):
    recipe = read_recipe(config, changes)
    return recipe.task(recipe.source())


WRONG = {
    "no such config": (("dppm", ()), r"config 'dppm' does not exist.*Did you mean 'ddpm'"),
    "no such file": (("nothing.toml", ()), r"no config nothing.toml"),
    "no such section": (("ddpm", ["trainin.lr=1"]), r"no section \[trainin\].*'training'"),
    "no such key": (("ddpm", ["training.stpes=1"]), r"\[training\] has no key 'stpes'.*'steps'"),
    "no such network": (("ddpm", ["network.name=unnet"]), r"\[network\] name = 'unnet' does not exist.*'unet'"),
    "no such option": (("ddpm", ["network.widht=3"]), r"\[network\] has no key 'widht'.*'width'"),
    "no such schedule": (("ddpm", ["schedule.name=VPCosin"]), r"\[schedule\].*'VPCosine'"),
    "a schedule's option": (("ve", ["schedule.sigma_mx=3"]), r"\[schedule\] has no key 'sigma_mx'.*'sigma_max'"),
    "no such loss": (("ddpm", ["objective.loss=Hybird()"]), r"'Hybird'.*'Hybrid'"),
    "no such prediction": (("ddpm", ["model.predicts=epsilon"]), r"'epsilon'.*'eps'"),
    "a text for a number": (("ddpm", ["training.lr=fast"]), r"\[training\].*fast|\[training\] does not fit"),
    "a text for a share": (("cfg", ["objective.label_dropout=often"]), r"\[objective\] does not fit"),
    "a classifier's option": (("adm-classifier", ["model.predicts=x0"]), r"\[model\] has no key 'predicts'"),
    "no such file of data": (("ddpm", ["data.name=ddigits"]), r"\[data\]: There is no data set 'ddigits'.*Did you mean 'digits'"),
    "a dimension that does not fit": (("ddpm", ["network.heads=3"]), r"\[network\] does not fit: 3 heads do not divide"),
    "a grid": (("ddpm", ["sampling.grid=Krras(7)"]), r"unknown grid 'Krras'.*'Karras'"),
    "a companion": (("adm", ["classifier.config=ddpm"]), r"recipe of kind 'score', not 'classifier'"),
    "no classifier": (("cfg", ["sampling.guidance=ClassifierGuidance(1.0)"]), r"needs a \[classifier\]"),
    "no change": (("ddpm", ["training.lr"]), r"section.key=value"),
    "a key of the data": (("ddpm", ["data.nme=digits"]), r"\[data\] has no key 'nme'.*'name'"),
}


@pytest.mark.parametrize(("given", "match"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_a_recipe_is_said(given, match):
    config, changes = given
    with pytest.raises(UserError, match=match):
        made(config, changes)


def test_what_is_no_recipe_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    for text, match in (
        ("steps = ", "not TOML"),
        ("[trainig]\nsteps=1", "no section or key 'trainig'.*'training'"),
        ("kind = 'score'", "there is no .network."),
        ("training = 3", r"training is a section: write \[training\]"),
        ('kind = "diffusion"', "kind 'diffusion' does not exist"),
        ('[network]\nname = "unet"\n[data]\nsplit = "train"', r"\[data\] needs name"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            made(path)


def test_what_was_done_is_what_was_allowed(tmp_path):
    recipe = trained("digits", tmp_path, **FAST)
    with pytest.raises(UserError, match="other settings"):
        trained("digits", tmp_path, **{**FAST, "lr": 1.0})
    assert read_recipe(tmp_path / "recipe.toml") == replace(recipe, name="recipe")
    assert read_recipe("digits", ["training.flip=True", "training.clip=inf"]).training["flip"] is True
    (tmp_path / "x.toml").write_text(read_recipe("digits", ["training.clip=inf"]).text())
    assert read_recipe(tmp_path / "x.toml").how().clip == math.inf


def test_points_train_too(tmp_path):
    from sdediff.cli.training import follow

    recipe = read_recipe("digits", ["data.name=ring8", "network.width=32"]).changed(**FAST)
    with pytest.warns(UserWarning, match="they are no images"):
        assert follow(recipe, tmp_path).exists()


def test_labels_that_the_data_do_not_have():
    recipe = read_recipe("cfg", ["data.labels=false"])
    with pytest.raises(UserError, match="digits has none"):
        recipe.task(recipe.source())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("digits", "digits-classes")])
def test_every_recipe_learns_in_a_minute(name, tmp_path):
    recipe = trained(name, tmp_path)
    path, x, labels = tmp_path / model_file(recipe), digits().x, digits().labels
    assert labels is not None
    if recipe.kind == "classifier":
        classifier = load_classifier(path)
        found = classifier(x, classifier.schedule.knot(0.05)).argmax(1)
        assert float((found == labels).float().mean()) > 0.9
        return
    if recipe.kind == "autoencoder":
        net = load_autoencoder(path)
        off = (net.decode(net.encode(x)) - x).abs().mean()
        assert float(off) < (0.05 if name == "autoencoder" else 0.25)
        return
    from sdediff.metrics import frechet_distance

    features = feature_extractor("digits").features
    model = load_model(path)
    images = sample(model, 500, calls=40)
    untrained = sample(recipe.task(recipe.source()).model if recipe.kind == "score" else model, 500, calls=2)
    distance = frechet_distance(features(images), features(x))
    assert distance < 0.3 * frechet_distance(features(untrained), features(x))


def test_the_command_keeps_a_log_and_draws_on_the_way(tmp_path):
    from sdediff.cli.training import follow

    model = follow(read_recipe("digits").changed(steps=60, batch=32), tmp_path, tensorboard=True, sheets=30)
    assert model == tmp_path / "model.safetensors"
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"30.png", "60.png"}
    assert (tmp_path / "samples.png").exists()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_latent_model_is_drawn_on_the_way_too(tmp_path):
    from sdediff.cli.training import follow

    recipe = replace(read_recipe("latent"), sampling={"steps": 2, "n": 10}, autoencoder={"config": "autoencoder", "training": FAST})
    follow(recipe.changed(**FAST), tmp_path, sheets=6)
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"6.png", "12.png"}


def test_networks_are_functions_of_the_seed():
    recipe = read_recipe("ddpm")
    one, two, three = (r.task(r.source()).net.state_dict() for r in (recipe, recipe, recipe.changed(seed=1)))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], three[k]) for k in one)
    assert build("unet", {"channels": 1}) is not None
