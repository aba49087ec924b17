"""The recipe: typed schema and loading. What a recipe says is here; what follows from it is in `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError

from compress.datasets import DataSpec
from compress.engine_options import EngineOptions
from compress.formats import FORMATS, FormatSpec, OnnxSpec
from compress.inheritance import with_inherited
from compress.kinds import Name, OneOf, Spec
from compress.models import MODELS, ModelSpec
from compress.named_device import DeviceOptions, DeviceSpec
from compress.objectives import OBJECTIVES, TermSpec
from compress.optimization import OPTIMIZERS, SCHEDULES, AdamSpec, ConstantSpec, OptimizerSpec, ScheduleSpec
from compress.published import ExpectSpec, PublishedSpec
from compress.quantize import QuantizedSpec, QuantizeSpec
from compress.ready_made import TeacherName
from compress.recipe_report import problems_of, recipe_error
from compress.yaml_document import Document, Problem, read_document
from export.opsets import LEAST_OPSET, OPSET
from runtime.errors import RecipeError

Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value,)


class TrainSpec(Spec):
    """How a stage is trained. A stage's own `train:` overrides the recipe's key by key.

    stop_after: end after so many epochs, with the learning rate that a run of all `epochs` has there; for a teacher
    that is stopped early (Kim et al. 2021, "noisy teacher"). test_curve: note test accuracy after each epoch, for a
    curve to publish; nothing is ever chosen by it.
    """

    epochs: int = Field(10, ge=1, le=100_000)
    batch_size: int = Field(128, ge=1)
    drop_last: bool = False
    optimizer: Annotated[OptimizerSpec, OneOf("optimizer", OPTIMIZERS)] = AdamSpec()
    schedule: Annotated[ScheduleSpec, OneOf("schedule", SCHEDULES)] = ConstantSpec()
    warmup_epochs: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    select: Literal["last", "best"] = "last"
    stop_after: int | None = Field(None, ge=1)
    test_curve: bool = False

    @property
    def epochs_run(self) -> int:
        """Return the number of epochs that are trained: all of the schedule's, or the first `stop_after`."""
        return self.stop_after or self.epochs


EnsembleLogits = Literal["mean", "sum"]
Objective = Annotated[
    Annotated[tuple[Annotated[TermSpec, OneOf("objective", OBJECTIVES)], ...], Field(min_length=1)],
    BeforeValidator(_as_list),
]


class LabelsSpec(Spec):
    """Which labels of the training rows a stage knows, for the papers' semi-supervised settings.

    rows: that many rows are labelled, each class with its share, chosen by the run's seed: the same rows in every stage
    that says the same number. rest: what becomes of the others. `leave_out` drops them; `teacher` keeps them, with the
    class that the teacher predicts for a label.
    """

    rows: int = Field(ge=1)
    rest: Literal["leave_out", "teacher"] = "leave_out"


class StageSpec(Spec):
    """One training stage: a model, its head, what it learns from, and what it should reach.

    quantize: train the model on grids of few bits (`compress.quantize`), best from the weights of a float stage.
    teacher: an earlier stage or a ready-made one (`compress.ready_made`), or several whose logits become one by
    `ensemble`: their mean, or their sum as in the published code of Kim et al. 2021.
    """

    model: Annotated[ModelSpec, OneOf("model", MODELS)]
    quantize: QuantizeSpec | None = None
    subclasses: int = Field(1, ge=1, le=4096)
    teacher: Annotated[tuple[TeacherName, ...], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    ensemble: EnsembleLogits | None = None
    init_from: str | None = None
    labels: LabelsSpec | None = None
    objective: Objective
    train: TrainSpec = TrainSpec()
    expect: ExpectSpec | None = None

    @property
    def network(self) -> ModelSpec:
        """Return what is trained: the model, or its quantised form."""
        return QuantizedSpec(model=self.model, quantize=self.quantize) if self.quantize else self.model

    @property
    def model_name(self) -> str:
        """Return what tables call the model: its kind, and bits of weights and activations where it is quantised."""
        return f"{self.model.kind} {self.quantize}" if self.quantize else self.model.kind

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the teachers that are earlier stages."""
        return tuple(each for each in self.teacher or () if isinstance(each, str))


class ExportSpec(Spec):
    """Which stage is deployed, in which formats, verified at which batch sizes.

    formats: `onnx` always; `packed` beside it for a binary student, whose `onnx` is then the same model on standard
    operators, for machines without those of the packed one. `fp16`, `int8` and `int8_cpu` beside it for all others.
    opset: of all ONNX files, with the IR version of its time, for an engine that is too old for 20
    (`export.older_opset`).
    """

    stage: str
    formats: Annotated[tuple[Annotated[FormatSpec, OneOf("format", FORMATS)], ...], Field(min_length=1)] = (OnnxSpec(),)
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1)] = (
        1,
        8,
        64,
    )
    subclass_probabilities: bool = False
    opset: int | None = Field(None, ge=LEAST_OPSET, le=OPSET)

    @property
    def settings(self) -> dict[str, Any]:
        """Return what the bundle's key is made of; options that came later and are not used are no part of it."""
        without = {"opset"} if self.opset is None else set()
        return self.model_dump(mode="json", exclude=without)


class LocalSpec(EngineOptions):
    """This machine. Formats are also verified, and their accuracy measured, on each engine that targets name."""

    kind = "local"

    threads: int = Field(1, ge=1, le=1024)
    batch: int = Field(1, ge=1, le=65536)
    quick: bool = False


TARGETS: dict[str, type[Spec]] = {"local": LocalSpec}
# A word that is no kind is a device of targets.yaml.
BenchmarkTarget = Annotated[LocalSpec | DeviceSpec, OneOf("target", TARGETS, named=DeviceOptions)]


# Lists of values by path, of which every combination is a run, or rows: runs of their own, each with several settings.
Grid = dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
Rows = Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]


def _grid_or_rows(value: Any) -> str:
    return "rows" if isinstance(value, tuple) else "grid"


Sweep = Annotated[Annotated[Grid, Tag("grid")] | Annotated[Rows, Tag("rows")], Discriminator(_grid_or_rows)]


class Recipe(Spec):
    """A recipe as it was written."""

    name: Name
    description: str = ""
    seed: Seed | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] | None = None
    data: DataSpec
    train: TrainSpec = TrainSpec()
    stages: Annotated[dict[Name, StageSpec], Field(min_length=1)]
    export: ExportSpec | None = None
    benchmark: tuple[BenchmarkTarget, ...] = ()
    expect: PublishedSpec | None = None
    sweep: Sweep = Field(default_factory=dict)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return self.seeds or (self.seed or 0,)

    @property
    def local_targets(self) -> tuple[LocalSpec, ...]:
        return tuple(each for each in self.benchmark if isinstance(each, LocalSpec))

    @property
    def devices(self) -> tuple[DeviceSpec, ...]:
        """Return the devices of targets.yaml that are named."""
        return tuple(each for each in self.benchmark if isinstance(each, DeviceSpec))

    @property
    def exported_stage(self) -> str:
        """Return the stage that is deployed: the one `export` names, else the last."""
        return self.export.stage if self.export else list(self.stages)[-1]

    def expectations(self) -> dict[str, ExpectSpec]:
        """Return what each stage should reach, by the recipe's `expect` or by its own."""
        own = {name: stage.expect for name, stage in self.stages.items() if stage.expect}
        return {**(self.expect.by_stage(self.exported_stage) if self.expect else {}), **own}

    def train_spec(self, stage: str) -> TrainSpec:
        """Return the stage's training options: the recipe's, overridden by those the stage writes itself."""
        own = self.stages[stage].train
        return self.train.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def load_recipe(path: Path) -> tuple[Recipe, Document]:
    """Read, parse and validate one file.

    Raises RecipeError naming every problem of the file at once.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}", "Name an existing recipe file.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})", "Save the recipe as UTF-8.") from None
    document = read_document(text)
    recipe, problems = recipe_from_value(document.value, document) if document.value is not None else (None, ())
    problems = (*document.problems, *problems)
    if recipe is None or problems:
        raise recipe_error(path, problems)
    return recipe, document


def recipe_from_value(value: Any, document: Document) -> tuple[Recipe | None, tuple[Problem, ...]]:
    """Validate plain data against the schema; `document` gives the lines."""
    if not isinstance(value, dict):
        return None, (Problem((), 1, "expected a mapping with name, data and stages", "See recipes/quickstart.yaml."),)
    value, problems = with_inherited(value, document)
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        # What a stage would have inherited is not missing as well.
        heirs = {problem.path[:2] for problem in problems}
        found = problems_of(error, Recipe, document)
        own = (each for each in found if each.path[:2] not in heirs or each.message != "is missing")
        return None, (*problems, *own)
    return (None if problems else recipe), problems
