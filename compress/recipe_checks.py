"""What a recipe must satisfy beyond its schema: stages that fit together. Needs no data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from compress.datasets import Declaration, declare
from compress.formats import TensorrtSpec, opset_problem
from compress.models import Shapes, has_binary_layers, shapes_of
from compress.models.binary import BinarySpec
from compress.named_device import DeviceSpec
from compress.objectives import Heads
from compress.published import PublishedSpec
from compress.ready_made import ArtifactTeacherSpec, OnnxTeacherSpec, ReadyMade
from compress.recipe import Recipe, StageSpec
from compress.recipe_report import did_you_mean, dotted
from compress.yaml_document import Document, Path, Problem
from runtime.errors import BundleError, DataError, MissingExtraError, RecipeError


def check_recipe(recipe: Recipe, document: Document) -> tuple[Problem, ...]:
    """Return everything that is wrong with how the parts of a valid recipe fit together."""
    declaration = declare(recipe.data)
    found = [*_recipe_problems(recipe)]
    for name, stage in recipe.stages.items():
        found += _reference_problems(recipe, name, stage)
        # Files of a published encoder may be elsewhere: a check needs none, and a run says what is missing.
        with contextlib.suppress(DataError, MissingExtraError):
            found += _model_problems(recipe, name, declaration)
        found += _training_problems(recipe, name, declaration)
    return tuple(Problem(path, document.line_of(path), message, remedy) for path, message, remedy in found)


def require_fitting_models(recipe: Recipe, declaration: Declaration) -> None:
    """Check what only the data could tell: whether models and heads fit its inputs and classes.

    Raises RecipeError naming every stage that does not fit.
    """
    found = [problem for name in recipe.stages for problem in _model_problems(recipe, name, declaration)]
    if found:
        lines = [f"{dotted(path)}: {message}" for path, message, _ in found]
        raise RecipeError(f"recipe {recipe.name} does not fit its data: " + "; ".join(lines), found[0][2])


def heads_of(recipe: Recipe, stage: str, declaration: Declaration) -> Heads:
    """Return what stands on both sides of a stage's objective; shapes where the declaration is complete.

    Raises ValueError when the images are too small for a model, or it takes another kind of input.
    """
    spec = recipe.stages[stage]
    teachers = _teachers_of(recipe, spec)
    return Heads(
        classes=declaration.classes or 0,
        subclasses=spec.subclasses,
        teacher_subclasses=teachers[0].subclasses if teachers else None,
        student=_shapes(spec, declaration),
        # Embeddings and maps of several teachers are not combined: they have no shape.
        teacher=_teacher_shapes(teachers[0], declaration) if len(teachers) == 1 else None,
    )


def _teachers_of(recipe: Recipe, stage: StageSpec) -> list[StageSpec | ReadyMade]:
    """Return the teachers that there are; those that are not have a problem of their own."""
    found: list[StageSpec | ReadyMade] = []
    for each in stage.teacher or ():
        if isinstance(each, str):
            found += [recipe.stages[each]] if each in recipe.stages else []
        else:
            with contextlib.suppress(RecipeError, BundleError):
                found.append(each.read())
    return found


def _teacher_shapes(teacher: StageSpec | ReadyMade, declaration: Declaration) -> Shapes | None:
    if isinstance(teacher, StageSpec):
        return _shapes(teacher, declaration)
    if declaration.signature is None or declaration.classes is None or "embedding" not in teacher.gives:
        return None
    return teacher.shapes(declaration.signature, declaration.classes)


def _shapes(stage: StageSpec, declaration: Declaration) -> Shapes | None:
    if declaration.signature is None or declaration.classes is None:
        return None
    return shapes_of(stage.network, signature=declaration.signature, outputs=declaration.classes * stage.subclasses)


Found = tuple[Path, str, str]


def _recipe_problems(recipe: Recipe) -> Iterator[Found]:
    if recipe.seed is not None and recipe.seeds is not None:
        yield ("seeds",), "seed and seeds are both given", "Keep one of the two."
    if len(set(recipe.all_seeds)) != len(recipe.all_seeds):
        yield ("seeds",), "a seed stands twice", "Give each seed once."
    if recipe.export and recipe.export.stage not in recipe.stages:
        yield (
            ("export", "stage"),
            f"unknown stage '{recipe.export.stage}'",
            did_you_mean(recipe.export.stage, list(recipe.stages)),
        )
    elif recipe.expect:
        yield from _expectation_problems(recipe, recipe.expect)
    kinds = [each.kind for each in recipe.export.formats] if recipe.export else ["onnx"]
    if "onnx" not in kinds:
        message = f"{', '.join(kinds)} without onnx, which every machine can run"
        yield ("export", "formats"), message, f"Write `formats: [onnx, {', '.join(kinds)}]`."
    others = [kind for kind in kinds if kind != "tensorrt"]
    if len(set(others)) < len(others):
        yield ("export", "formats"), "a format stands twice", "Name each once."
    if recipe.export and (problem := opset_problem(recipe.export.formats, recipe.export.opset)):
        yield ("export", "opset"), *problem
    yield from _engine_problems(recipe)
    if recipe.benchmark and not recipe.export:
        yield ("benchmark",), "there is nothing to benchmark without export", "Add `export: {stage: ...}`."
    seen: set[str] = set()
    for i, target in enumerate(recipe.benchmark):
        if isinstance(target, DeviceSpec):
            if target.label in seen:
                yield (
                    ("benchmark", i),
                    f"target '{target.label}' stands twice",
                    "Name each once, or change its threads or engine.",
                )
            seen.add(target.label)


def _engine_problems(recipe: Recipe) -> Iterator[Found]:
    """Say which TensorRT engines cannot be built of what is exported."""
    if recipe.export is None:
        return
    kinds = [each.kind for each in recipe.export.formats]
    seen: set[tuple[str, str, str | None]] = set()
    for i, spec in enumerate(recipe.export.formats):
        if not isinstance(spec, TensorrtSpec):
            continue
        path: Path = ("export", "formats", i)
        if spec.source not in kinds:
            yield (*path, "from"), f"'{spec.source}' is not exported", f"Add {spec.source} to the formats."
        if spec.via == "torch" and (spec.source != "onnx" or spec.module or len(spec.profiles) > 1):
            remedy = "Leave from, module and further profiles out, or via."
            yield (
                (*path, "via"),
                "torch-tensorrt takes the trained model, with one profile, by a TensorRT of its own",
                remedy,
            )
        if spec.capabilities and (spec.module == "tensorrt" or spec.via == "torch"):
            builder = "torch-tensorrt" if spec.via == "torch" else "tensorrt"
            remedy = "Leave capabilities out, or module: tensorrt_rtx builds for others."
            yield (*path, "capabilities"), f"{builder} builds for the GPU that it runs on", remedy
        engines = {(spec.source, spec.via, capability) for capability in spec.capabilities or (None,)}
        if seen & engines:
            yield path, f"an engine of {spec.source} for the same GPU stands above", "Name each once."
        seen |= engines


def _expectation_problems(recipe: Recipe, expect: PublishedSpec) -> Iterator[Found]:
    for name in expect.by_stage(recipe.exported_stage):
        if name not in recipe.stages:
            yield ("expect",), f"unknown stage '{name}'", did_you_mean(name, list(recipe.stages))
        elif recipe.stages[name].expect:
            yield ("expect",), f"stage '{name}' has an expect of its own", "Keep one of the two."


def _reference_problems(recipe: Recipe, name: str, stage: StageSpec) -> Iterator[Found]:
    order = list(recipe.stages)
    own = ("stages", name)
    references = [((*own, "teacher"), teacher) for teacher in stage.teachers]
    if stage.init_from is not None:
        references.append(((*own, "init_from"), stage.init_from))
    for path, other in references:
        if other == name:
            yield path, "a stage cannot name itself", f"Name a stage that stands above '{name}'."
        elif other not in recipe.stages:
            yield path, f"unknown stage '{other}'", did_you_mean(other, order[: order.index(name)])
        elif order.index(other) > order.index(name):
            remedy = f"Stages run in the order in which they are written: move '{other}' above '{name}'."
            yield path, f"'{other}' is a later stage", remedy
    yield from _teacher_problems(recipe, own, stage)


def _teacher_problems(recipe: Recipe, own: Path, stage: StageSpec) -> Iterator[Found]:
    """Say what does not fit between a stage's teachers and what it reads of them."""
    readers = [(i, term) for i, term in enumerate(stage.objective) if term.needs]
    from_teacher = stage.labels is not None and stage.labels.rest == "teacher"
    teachers = stage.teacher or ()
    if not teachers:
        for i, term in readers:
            yield (*own, "objective", i), f"{term.kind} needs a teacher", "Add `teacher:` with an earlier stage."
        if from_teacher:
            yield (*own, "labels", "rest"), "rest: teacher needs a teacher", "Add `teacher:` with an earlier stage."
    elif not readers and not from_teacher:
        message = "no term of the objective reads the teacher"
        yield (*own, "teacher"), message, "Add a term such as kl, or leave it out."
    if len(set(teachers)) < len(teachers):
        yield (*own, "teacher"), "a teacher stands twice", "Name each stage once."
    if stage.ensemble and len(teachers) < 2:
        yield (*own, "ensemble"), "there is one teacher", "Name several, `teacher: [a, b]`, or leave it out."
    if len(teachers) > 1:
        yield from _ensemble_problems(recipe, own, stage)
    for each in teachers:
        if not isinstance(each, str):
            yield from _ready_made_problems(own, stage, each)


def _ready_made_problems(own: Path, stage: StageSpec, spec: OnnxTeacherSpec | ArtifactTeacherSpec) -> Iterator[Found]:
    """Say why a file cannot be read as a teacher, and what of it the terms read in vain."""
    try:
        teacher = spec.read()
    except (RecipeError, BundleError) as error:
        yield (*own, "teacher"), error.message, error.remedy
        return
    if len(stage.teacher or ()) > 1:
        return  # of several teachers there are logits, and every file gives them
    for i, term in enumerate(stage.objective):
        reads: set[str] = {*term.needs, *(["classifier"] if term.reads_classifier else [])}
        if beyond := sorted(reads - teacher.gives):
            yield (
                (*own, "objective", i),
                f"{term.kind} reads the teacher's {' and '.join(beyond)}, and {teacher.name} gives "
                f"{' and '.join(sorted(teacher.gives))}",
                _HOW_TO_GIVE[beyond[-1]],
            )


# By the last, in order, of what a file does not give.
_HOW_TO_GIVE = {
    "classifier": "It is there where the logits are a Gemm node of the tensor named by `embedding`.",
    "embedding": "Name the tensor with `embedding:`, or take kl, mse or kd.",
    "features": "Feature maps are of stages alone: take another term.",
}


def _ensemble_problems(recipe: Recipe, own: Path, stage: StageSpec) -> Iterator[Found]:
    heads = {teacher.subclasses for teacher in _teachers_of(recipe, stage)}
    if len(heads) > 1:
        counts = ", ".join(map(str, sorted(heads)))
        message = f"the teachers have {counts} subclasses per class, so their logits cannot be combined"
        yield (*own, "teacher"), message, "Give all of them the same `subclasses`."
    for i, term in enumerate(stage.objective):
        if beyond := sorted(term.needs - {"logits"}):
            message = (
                f"{term.kind} reads the teacher's {' and '.join(beyond)}, and of several teachers there are logits"
            )
            yield (*own, "objective", i), message, "Name one teacher, or take kl, mse or kd."


def _model_problems(recipe: Recipe, name: str, declaration: Declaration) -> Iterator[Found]:
    stage = recipe.stages[name]
    if stage.quantize and isinstance(stage.model, BinarySpec):
        yield (
            ("stages", name, "quantize"),
            f"quantize is for real-valued models, and {stage.model.kind} has bits of its own",
            "Write them as options of the model, `weights: int4, activations: int8`, or take another model.",
        )
        return
    try:
        # Whether a model takes the input does not hang on the number of classes, which only the files may tell.
        _shapes(stage, replace(declaration, classes=declaration.classes or 2))
    except ValueError as error:
        yield ("stages", name, "model"), str(error), ""
        return
    unfit = list(_misfits(recipe, name, declaration))
    yield from unfit
    try:
        heads = heads_of(recipe, name, declaration)
    except ValueError:
        return  # the teacher's own stage has that problem
    for i, term in enumerate(stage.objective if not unfit else ()):
        problem = term.problem(heads)
        if problem is not None:
            yield ("stages", name, "objective", i), f"{term.kind}: {problem}", ""
    yield from _format_problems(recipe, name, declaration)
    source = recipe.stages.get(stage.init_from or "")
    if source and not (stage.network.takes_weights_of(source.network) and source.subclasses == stage.subclasses):
        yield (
            ("stages", name, "init_from"),
            f"'{stage.init_from}' has another model or head, so its weights do not fit",
            "Give both stages the same model and subclasses.",
        )


def _format_problems(recipe: Recipe, name: str, declaration: Declaration) -> Iterator[Found]:
    if recipe.export is None or name != recipe.exported_stage:
        return
    signature, model, quantize = declaration.signature, recipe.stages[name].model, recipe.stages[name].quantize
    binary_only, real_only, quantized_only = (
        [each.kind for each in recipe.export.formats if each.students == students]
        for students in ("binary", "real", "quantized")
    )
    if quantize and real_only:
        yield (
            ("export", "formats"),
            f"{' and '.join(real_only)} would round once more what stage '{name}' was trained to round",
            "Leave it out: `onnx` of a quantised stage is INT8 already.",
        )
    if quantized_only and not quantize:
        yield (
            ("export", "formats"),
            f"{' and '.join(quantized_only)} is for quantised students, and stage '{name}' has no quantize",
            "Write `quantize: {weights: 4}` in the stage, or `int8` among the formats.",
        )
    if signature is None or not (binary_only or real_only):
        return
    binary = has_binary_layers(model, signature=signature, outputs=2)
    if binary and "tensorrt" in real_only:
        message = f"TensorRT has no operators of one bit, and {model.kind} of stage '{name}' has binary layers"
        yield ("export", "formats"), message, "Write `formats: [onnx, packed]`."
    if binary and (rounded := [kind for kind in real_only if kind != "tensorrt"]):
        yield (
            ("export", "formats"),
            f"{' and '.join(rounded)} would round what signs are taken of, and {model.kind} of stage '{name}' has "
            "binary layers",
            "Write `formats: [onnx, packed]`: packed is smaller and equal to what was trained.",
        )
    if binary_only and not binary:
        yield (
            ("export", "formats"),
            f"packed is for binary models, and {model.kind} of stage '{name}' has no binary layers",
            "Leave `packed` out, or deploy a model such as binary_resnet with binary weights and activations.",
        )


def _misfits(recipe: Recipe, name: str, declaration: Declaration) -> Iterator[Found]:
    """Say which ready-made teachers do not fit the data."""
    if declaration.signature is None or declaration.classes is None:
        return
    for teacher in _teachers_of(recipe, recipe.stages[name]):
        if isinstance(teacher, StageSpec):
            continue
        problem = teacher.problem(recipe.data, declaration.signature, declaration.classes)
        if problem is not None:
            yield ("stages", name, "teacher"), problem, ""


def _training_problems(recipe: Recipe, name: str, declaration: Declaration) -> Iterator[Found]:
    train = recipe.train_spec(name)
    written = recipe.stages[name].train.model_fields_set

    def at(option: str) -> Path:
        return ("stages", name, "train", option) if option in written else ("train", option)

    if train.select == "best" and recipe.data.validation == 0:
        yield (
            at("select"),
            "select: best needs validation rows",
            "Set data.validation above 0, or select: last.",
        )
    if train.stop_after is not None and train.stop_after > train.epochs:
        yield at("stop_after"), f"stop_after is {train.stop_after} of {train.epochs} epochs", "Make it smaller."
    if train.channels_last and declaration.signature and declaration.signature.ids is not None:
        yield (
            at("channels_last"),
            f"channels_last is for images, and the data is {declaration.signature}",
            "Leave it out.",
        )
    if train.warmup_epochs >= train.epochs:
        yield (
            at("warmup_epochs"),
            f"the warm-up takes {train.warmup_epochs} of {train.epochs} epochs",
            "Make it shorter.",
        )
