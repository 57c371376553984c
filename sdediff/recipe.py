"""A training as a TOML file: data, network, schedule, what the network predicts, what is minimised, how long, and how samples are drawn.

    about = "DDPM (Ho et al. 2020)"
    kind = "score"                 # or "classifier", "autoencoder", "latent"
    [data]       name = "digits"   # or path = "folder"; further options of `open_source`
    [network]    name = "unet"     # and its options; channels, size, shape and classes are filled in from the data
    [schedule]   name = "VPLinear" # and its options; also "DiscreteVP.linear", "DiscreteVP.cosine"
    [model]      predicts = "eps"  # further options of ScoreNet; conditional = true for class labels
    [objective]  loss = "Objective(times='index')", label_dropout = 0.1; of an autoencoder: options of AutoencoderTask
    [training]                     # options of Training
    [sampling]                     # solver, steps or calls, guidance: how the sheet of samples is drawn
    [classifier], [autoencoder]    # config = NAME: trained with it, training = {steps = 100}: otherwise; or path = FILE

The shipped ones are in `sdediff/configs`. A key that does not exist is refused, with the nearest that does.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import schedules
from .checkpoint import load_autoencoder, load_model, save_model, write_bytes
from .data import Source, open_source
from .external import DELEGATES
from .grid import GRIDS
from .guidance import ClassifierGuidance, guidance_named
from .latent_diffusion import LatentDiffusion, encode_source
from .names import UserError, choose, from_repr, nearest
from .networks import NETWORKS, build
from .objective import Loss, objective_named
from .prediction import Model
from .processes import Alone, Processes
from .schedule import Schedule
from .score import ScoreNet
from .solvers import named
from .tasks import AutoencoderTask, ClassifierTask
from .toml import built, change_key, known_keys, options_of, read_toml, toml_value
from .train import Denoising, Progress, Task, Training, fit

KINDS = ("score", "classifier", "autoencoder", "latent")
CONFIGS = Path(__file__).parent / "configs"
SCHEDULES: dict[str, Any] = {
    **{name: made for name, made in vars(schedules).items() if inspect.isclass(made) and issubclass(made, Schedule) and name[0] != "_"},
    "DiscreteVP.linear": schedules.DiscreteVP.linear,
    "DiscreteVP.cosine": schedules.DiscreteVP.cosine,
}
SECTIONS = ("data", "network", "schedule", "model", "objective", "training", "sampling", "classifier", "autoencoder")


@dataclass(frozen=True)
class Recipe:
    """A configuration, its sections as they were written; `task` and `source` make what `fit` takes."""

    name: str
    about: str = ""
    kind: str = "score"
    data: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose(f"{self.name}: kind", self.kind, KINDS)
        self.how()  # whatever is wrong in a section is said now, and not after hours of training
        self.made_schedule()
        if self.kind in ("score", "latent"):
            self._objective()
        known_keys(self.name, "model", self.model, ("conditional", *options_of(ScoreNet, "net", "schedule", "labels", "shape")))
        known_keys(self.name, "sampling", self.sampling, ("solver", "grid", "steps", "calls", "tolerance", "guidance", "n", "columns"))
        if "solver" in self.sampling:
            named(self.sampling["solver"], DELEGATES)
        if "grid" in self.sampling:
            from_repr(self.sampling["grid"], {g.__name__: g for g in GRIDS}, "grid")
        leaning = guidance_named(self.sampling["guidance"]) if "guidance" in self.sampling else None
        for section in ("classifier", "autoencoder"):
            known_keys(self.name, section, getattr(self, section), ("config", "path", "training"))
            if getattr(self, section) or (section, self.kind) == ("autoencoder", "latent"):
                self.companion(section)
        if self.classifier and self.kind != "score":
            raise UserError(f"{self.name}: [classifier] is trained on images, so it cannot guide a model of kind {self.kind!r}.")
        if isinstance(leaning, ClassifierGuidance) and not self.classifier:
            raise UserError(f"{self.name}: [sampling] guidance needs a [classifier], with config = or path =.")
        if self.network:
            network = _named(self.name, "network", self.network, NETWORKS)
            known_keys(self.name, "network", self.network, ("name", *options_of(network)))

    def companion(self, what: str) -> Recipe | None:
        """The recipe of the "classifier" or "autoencoder" that this one needs, on the same data; None where its file is given."""
        given = getattr(self, what)
        if "path" in given:
            return None
        if "config" not in given:
            raise UserError(f"{self.name}: [{what}] needs config = (a recipe to train it by) or path = (the file of a trained one).")
        other = replace(read_recipe(given["config"]), data=self.data).changed(**given.get("training", {}))
        if other.kind != what:
            raise UserError(f"{self.name}: [{what}] config = {given['config']!r} is a recipe of kind {other.kind!r}, not {what!r}.")
        return other

    def how(self) -> Training:
        """[training]."""
        return built(self.name, "training", Training, self.training)

    def made_schedule(self) -> Schedule:
        """[schedule], VPLinear() where none is named."""
        made = _named(self.name, "schedule", self.schedule or {"name": "VPLinear"}, SCHEDULES)
        return built(self.name, "schedule", made, {k: v for k, v in self.schedule.items() if k != "name"})

    def _objective(self) -> tuple[Loss, float]:
        known_keys(self.name, "objective", self.objective, ("loss", "label_dropout"))
        return objective_named(self.objective.get("loss", "Objective()")), self.objective.get("label_dropout", 0.0)

    def source(self) -> Source:
        """[data], opened."""
        given = dict(self.data) or {"name": "digits"}
        name, path = given.pop("name", None), given.pop("path", None)
        if name is None and path is None:
            raise UserError(f"{self.name}: [data] needs name = (one of the known sets) or path = (a folder or a file).")
        named = name if path is None else Path(path)
        return built(self.name, "data", open_source, given, ("name", "path"), named)

    def task(self, source: Source) -> Task:
        """What learns from this source: a freshly initialised network (a function of the seed) and its loss."""
        net: Any = self._network(source)
        if self.kind == "autoencoder":
            return built(self.name, "objective", AutoencoderTask, self.objective, (), net)
        schedule, given = self.made_schedule(), dict(self.model)
        if self.kind == "classifier":
            return built(self.name, "model", ClassifierTask, given, (), net, schedule)
        given.pop("conditional", None)
        objective, dropout = self._objective()
        model = built(self.name, "model", ScoreNet, {**given, "shape": tuple(source.shape)}, (), net, schedule)
        return built(self.name, "objective", Denoising, {"objective": objective, "label_dropout": dropout}, (), model)

    def _network(self, source: Source) -> torch.nn.Module:
        given = dict(self.network)
        if not given:
            raise UserError(f"{self.name}: there is no [network]: write one, with name = one of {', '.join(NETWORKS)}.")
        name = given.pop("name")
        known = options_of(NETWORKS[name])
        shape = source.shape
        filled = {
            "channels": shape[0],
            "size": shape[-1] if len(set(shape[1:])) < 2 else list(shape[1:]),
            "shape": list(shape),
            "variance": self.model.get("variance"),
        }
        if self.model.get("conditional") or self.kind == "classifier":
            if source.classes is None:
                raise UserError(f"{self.name}: labels are asked for, but {source.name} has none: give labelled data.")
            filled["classes"] = source.classes
        options = {k: v for k, v in filled.items() if k in known and v is not None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.how().seed)
            return built(self.name, "network", build, {"name": name, "config": {**options, **given}})

    def changed(self, **training: Any) -> Recipe:
        """The same with other options of [training]; None leaves one as it is."""
        return replace(self, training={**self.training, **{k: v for k, v in training.items() if v is not None}})

    def text(self) -> str:
        """The recipe as TOML."""
        lines = [f"{k} = {json.dumps(getattr(self, k))}" for k in ("about", "kind")]
        for section in SECTIONS:
            given = getattr(self, section)
            lines += ["", f"[{section}]", *(f"{k} = {toml_value(v)}" for k, v in given.items())] if given else []
        return "\n".join(lines) + "\n"


class Stage(NamedTuple):
    """After a step of a recipe's run: which recipe is being trained, in which folder, and how far.

    model: what images can be drawn from (with the network as it is just now); None for an autoencoder or a classifier.
    """

    recipe: Recipe
    task: Task
    folder: Path
    progress: Progress
    model: Model | None


def model_file(recipe: Recipe) -> str:
    """The name of the finished model in the folder of its run."""
    return "latent.safetensors" if recipe.kind == "latent" else "model.safetensors"


def run(
    recipe: Recipe,
    folder: str | Path,
    *,
    workers: int = 0,
    compiled: bool = False,
    checkpointing: bool = False,
    among: Processes | None = None,
) -> Iterator[Stage]:
    """Train what the recipe says in `folder`, first what it needs (`folder/autoencoder`), then what goes with it (`folder/classifier`).

    Started again with the same recipe it goes on where it was; `folder/recipe.toml` is what it did. checkpointing: networks keep only
    their blocks' inputs for the gradient. The other arguments and the errors are those of `fit`.
    """
    folder, among = Path(folder), among or Alone()
    options: dict[str, Any] = {"workers": workers, "compiled": compiled, "checkpointing": checkpointing, "among": among}
    source = recipe.source()
    coded = None
    if recipe.kind == "latent":
        coder = load_autoencoder((yield from _companion(recipe, "autoencoder", folder, options))).to(among.device)
        source, scale, shift = encode_source(coder, source, mirrored=recipe.how().flip)
        coded = coder, scale, shift
    how = replace(recipe.how(), flip=recipe.how().flip and coded is None)
    task = recipe.task(source)
    model: Model | None = task.model if isinstance(task, Denoising) else None
    if coded is not None and model is not None:
        model = LatentDiffusion(model, *coded)
    every = max(50, min(1000, how.steps // 10))
    told = False
    if checkpointing:
        if "checkpointing" not in vars(task.net):
            raise UserError(f"{recipe.name}: a network of kind {recipe.network['name']!r} has no gradient checkpointing: leave it out.")
        task.net.checkpointing = True  # type: ignore[assignment]
    for progress in fit(task, source, how, folder=folder, save_every=every, workers=workers, compiled=compiled, among=among):
        if not told and among.rank == 0:  # the folder has been found to be of this recipe
            write_bytes(folder / "recipe.toml", recipe.text().encode())
        told = True
        yield Stage(recipe, task, folder, progress, model)
    if coded is not None and among.rank == 0:
        save_model(folder / model_file(recipe), LatentDiffusion(load_model(folder / "model.safetensors"), *coded))
    if recipe.classifier:
        yield from _companion(recipe, "classifier", folder, options)


def _companion(recipe: Recipe, what: str, folder: Path, options: dict[str, Any]) -> Iterator[Stage]:
    """Train the other network that a recipe names, on the same data, unless it is there; the path of its file."""
    other = recipe.companion(what)
    if other is not None:
        yield from run(other, folder / what, **options)
    return companion_file(recipe, what, folder)


def companion_file(recipe: Recipe, what: str, folder: Path) -> Path:
    """Where the "classifier" or "autoencoder" of a run in `folder` lies."""
    given = getattr(recipe, what).get("path")
    return Path(given) if given is not None else folder / what / "model.safetensors"


def configs() -> dict[str, str]:
    """The shipped recipes: names, and what each is."""
    return {path.stem: tomllib.loads(path.read_text()).get("about", "") for path in sorted(CONFIGS.glob("*.toml"))}


def read_recipe(config: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped config's name or of a TOML file; changes: texts "section.key=value".

    Raises `UserError` for a name or key that does not exist (the nearest is suggested), text that is no TOML, or options that do not fit.
    """
    path = Path(config)
    if path.suffix != ".toml":
        choose("config", str(config), configs())
        path = CONFIGS / f"{config}.toml"
    given = read_toml(path, list(configs()))
    for change in changes:
        change_key(given, change, SECTIONS, "training.steps=1000")
    known_keys(path.name, "", given, [f.name for f in fields(Recipe) if f.name != "name"])
    for section in SECTIONS:
        if not isinstance(given.get(section, {}), dict):
            raise UserError(f"{path.name}: {section} is a section: write [{section}] and its keys below.")
    return Recipe(path.stem, **given)


def _named(config: str, section: str, given: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
    name = str(given.get("name"))
    if name not in made:
        raise UserError(f"{config}: [{section}] name = {name!r} does not exist.{nearest(name, made)} There are: {', '.join(made)}.")
    return made[name]
