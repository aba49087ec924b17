"""One variant of a recipe on its way: train, export, verify, measure. What is finished and intact is reused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress import provenance
from compress.device_run import Device, devices_of, measure, serves
from compress.evaluate import predict
from compress.formats import engine_specs
from compress.forms import Source, form_of, record_file
from compress.model_card import export_card
from compress.plan import Plan
from compress.progress import Notify
from compress.recipe import LocalSpec
from compress.stages import Settings, Stages
from export.bundle import write_bundle, write_npz
from export.engines import FP32_GATE, add_engines, build_engines
from export.fold import fold_logits
from export.graph import DeployableGraph, Preprocess
from export.layers import binary_layers
from export.to_onnx import onnx_from_graph
from export.to_portable import portable_from_onnx
from export.to_qdq import qdq_from_onnx
from export.to_torch_tensorrt import program_from_graph, torch_tensorrt_module
from export.verify import NotRun, cases_of, require_parity, verify_formats
from runtime.bundle import Bundle, open_bundle
from runtime.errors import BundleError, EdgefoldError, ExportError, MissingExtraError
from runtime.files import file_atomically, sha256_of_file, write_json
from runtime.measure import FULL, QUICK
from runtime.own_process import run_in_own_process
from runtime.processes import Candidate, measured_in_turn
from runtime.runners.choice import DEFAULT, EngineChoice
from runtime.tensorrt_library import tensorrt_module

Step = Literal["train", "export", "verify", "benchmark"]
STEPS: tuple[Step, ...] = ("train", "export", "verify", "benchmark")

PROGRAM = "torch-tensorrt.pt2"  # beside the bundle: loading it may run what it brings
SAMPLES = 256  # real inputs that travel with a bundle
PARITY_VERSION = 2  # of parity.json; 2 added by_class and worst_rows
PARITY_ROWS = 1000  # test rows that every format is compared on


class VariantRun(Stages):
    """A variant through all its steps. Each step returns what it made and may be called alone."""

    def run(self, until: Step, only: str | None = None) -> None:
        """Go through the steps up to and including `until`; `only` limits training to one stage and those it needs."""
        for step in STEPS[: STEPS.index(until) + 1]:
            if step == "train":
                self.train(only)
            elif self.plan.recipe.export is not None:
                {"export": self.export, "verify": self.verify, "benchmark": self.benchmark}[step]()

    _cannot_build = _asked_torch = False  # said once

    def __init__(self, plan: Plan, settings: Settings, notify: Notify) -> None:
        super().__init__(plan, settings, notify)
        self.devices: Mapping[str, Device] = {}  # that `benchmark` has tried to measure on, by label
        self.device_errors: Mapping[str, EdgefoldError] = {}  # why some of them could not be

    @property
    def bundle_path(self) -> Path:
        return self.folder / "bundle"

    def bundle(self) -> Bundle | None:
        """Return the bundle that is there, if it is intact and of this plan."""
        if not self.bundle_path.exists():
            return None
        try:
            bundle = open_bundle(self.bundle_path)
        except BundleError as error:
            self.notify(f"warning: {self.bundle_path} is damaged: {error.message}")
            return None
        return bundle if bundle.recipe_key == self.plan.key else None

    def export(self) -> Bundle:
        """Write the bundle, or reuse the one that is there; build the engines that it lacks, where that can be done."""
        bundle = self.bundle() or self._write_bundle()
        self._compile_by_torch()
        if not bundle.missing_engines or self._cannot_build:
            return bundle
        try:
            for module in {request.module for request in bundle.missing_engines}:
                tensorrt_module(module)
        except (MissingExtraError, ExportError) as error:
            self._cannot_build = True
            self.notify(f"warning: no TensorRT engine is built: {error.message}. {on_the_device(bundle)}")
            return bundle
        return add_engines(bundle, build_engines(bundle, bundle.missing_engines, notify=self.notify))

    def _compile_by_torch(self) -> None:
        """Write the ExportedProgram that is asked for, where torch-tensorrt works; say so where it does not."""
        export, path = self.plan.recipe.export, self.folder / PROGRAM
        wanted = [spec for spec in engine_specs(export.formats if export else ()) if spec.via == "torch"]
        if not wanted or self._asked_torch:
            return
        self._asked_torch = True
        kept = self.result(f"{PROGRAM}.json")
        if kept is not None and path.exists() and kept["sha256"] == sha256_of_file(path):
            return
        rows = self.dataset.test.inputs[: min(PARITY_ROWS, len(self.dataset.test))]
        sizes = wanted[0].profiles[0] if wanted[0].profiles else open_bundle(self.bundle_path).batch_sizes
        try:
            torch_tensorrt_module()
        except (MissingExtraError, ExportError) as error:
            self.notify(f"warning: no {PROGRAM} is built: {error.message}. {error.remedy}")
            return
        compared = program_from_graph(
            self._graph(), self.dataset.signature, path,
            batch_sizes=sizes, rows=np.asarray(rows), gate=FP32_GATE, workspace_mib=wanted[0].workspace,
        )  # fmt: skip
        bundle = open_bundle(self.bundle_path)
        result = {"format_version": 1, "bundle": _identity(bundle), "sha256": sha256_of_file(path)}
        write_json(self.folder / f"{PROGRAM}.json", {**result, "comparison": compared.to_json()})

    def result(self, name: str) -> dict[str, Any] | None:
        """Return the content of a result file of this run (parity.json, ...), if it is of the bundle that is there."""
        bundle = self.bundle()
        try:
            result = json.loads((self.folder / name).read_text())
            return result if bundle and result["bundle"]["checksum"] == bundle.checksum else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def benches(self, format_name: str, choice: EngineChoice | None = None) -> dict[str, dict[str, Any]]:
        """Return the latency results of a format by target; with `choice` this machine's, on that engine."""
        found = {
            file.name.split(".")[2]: self.result(file.name)
            for file in sorted(self.folder.glob(f"bench.{format_name}.*.json"))
        }
        return {
            target: result
            for target, result in found.items()
            if result is not None and (choice is None or ("target" not in result and _label(result) == choice.label))
        }

    def _graph(self) -> DeployableGraph:
        """Return what is deployed: the stage's model behind its preprocessing, in front of the fold."""
        stage, export = self.plan.stage(self.plan.recipe.exported_stage), self.plan.recipe.export
        return DeployableGraph(
            Preprocess(self.dataset.signature, self.dataset.normalization),
            self.model(stage.name).cpu(),
            stage.heads.classes,
            stage.heads.subclasses,
            subclass_probabilities=export is not None and export.subclass_probabilities,
        )

    def _write_bundle(self) -> Bundle:
        recipe, stage = self.plan.recipe, self.plan.stage(self.plan.recipe.exported_stage)
        export, dataset, artifact = recipe.export, self.dataset, self.artifacts[stage.name]
        assert export is not None  # run() and the command line look first
        graph = self._graph()
        test = artifact.metrics["test"]
        metrics = {"test_accuracy": test["accuracy"], "test_rows": test["total"]}
        metadata = {
            "edgefold.name": self.plan.name,
            "edgefold.stage": stage.name,
            "edgefold.recipe_key": self.plan.key,
            "edgefold.class_names": json.dumps(dataset.class_names),
            "edgefold.metrics": json.dumps(metrics),
            provenance.KEY: provenance.recipe_text(self.plan.variant),
        }
        rows = slice(0, min(SAMPLES, len(dataset.test)))
        simulated, layers = onnx_from_graph(graph, dataset.signature, metadata=metadata), binary_layers(graph)
        source = Source(simulated, layers, dataset.train, self.notify, export.opset)
        precision = "int8" if stage.spec.quantize else "fp32"
        if stage.spec.quantize:
            onnx = qdq_from_onnx(simulated)
        else:
            onnx = portable_from_onnx(simulated, layers=layers) if layers else simulated
        onnx = source.written(onnx)
        forms = [form_of(spec, source) for spec in export.formats if spec.kind not in ("onnx", "tensorrt")]
        write_bundle(
            self.bundle_path,
            name=self.plan.name,
            stage=stage.name,
            recipe_key=self.plan.key,
            classes=stage.heads.classes,
            subclasses=stage.heads.subclasses,
            class_names=dataset.class_names,
            signature=dataset.signature,
            text=dataset.featuriser,
            table=dataset.columns,
            onnx=onnx,
            precision=precision,
            forms=[each.form for each in forms],
            inputs=dataset.test.inputs[rows],
            labels=dataset.test.labels[rows],
            row_ids=dataset.test.row_ids[rows],
            logits=self._reference_logits()[rows],
            metrics=metrics,
            batch_sizes=export.batch_sizes,
            engines=[spec.request for spec in engine_specs(export.formats) if spec.via == "onnx"],
            card=export_card(self, onnx, precision, [each.form for each in forms]),
        )
        bundle = open_bundle(self.bundle_path)
        for made in forms:
            if made.record is not None:
                result = {"format_version": 1, "bundle": _identity(bundle), **made.record}
                write_json(self.folder / record_file(made.form.precision), result)
        return bundle

    def _reference_logits(self) -> np.ndarray:
        """Return torch's folded logits (rows, C) of the deployed stage on the test rows."""
        stage = self.plan.stage(self.plan.recipe.exported_stage)
        logits = predict(self.model(stage.name), self.preprocess, self.test_rows)
        return fold_logits(logits, stage.heads.subclasses).cpu().numpy()

    def verify(self) -> dict[str, Any]:
        """Compare every format with torch on test rows; write parity.json.

        Raises GateError when a gate is missed; the files are kept.
        """
        bundle = self.export()
        cases = self.cases()
        kept = self.result("parity.json")
        if kept is not None and _still_holds(kept, cases):
            return kept
        rows = slice(0, min(PARITY_ROWS, len(self.dataset.test)))
        test = self.dataset.test
        reports = verify_formats(
            bundle,
            test.inputs[rows],
            self._reference_logits()[rows],
            test.labels[rows],
            row_ids=test.row_ids[rows],
            cases=cases,
        )
        result = {
            "format_version": PARITY_VERSION,
            "bundle": _identity(bundle),
            "passed": all(report.passed for report in reports if not isinstance(report, NotRun)),
            "formats": {report.name: report.to_json() for report in reports},
        }
        write_json(self.folder / "parity.json", result)
        for report in reports:
            require_parity(report)
        return result

    def cases(self) -> list[tuple[str, EngineChoice]]:
        """Return every format with each engine that runs it: its own, and those that the recipe's targets name."""
        return cases_of(self.export(), [DEFAULT, *(target.choice for target in self.plan.recipe.local_targets)])

    def benchmark(self) -> None:
        """Measure accuracy and latency of every format on every target, each in processes of its own.

        Latencies are measured in turn, process by process. What this machine cannot run is left out, and said. Then
        come the devices of targets.yaml; `device_errors` says which ones could not be measured, and nothing is raised.
        """
        devices = devices_of(self.plan.recipe, self.settings.targets)
        parity = self.verify()["formats"]
        wanted = []
        for name, choice in self.cases():
            key = choice.key(name)
            if why := parity[key].get("not_run"):
                self.notify(f"{key} is not measured here: {why}")
                continue
            self.accuracy(name, choice)
            wanted += [
                (name, target) for target in self.plan.recipe.local_targets if target.choice.label == choice.label
            ]
        self.bench(wanted)
        self.devices, self.device_errors = devices, measure(self, devices)

    def accuracy(self, format_name: str, choice: EngineChoice = DEFAULT) -> dict[str, Any]:
        """Evaluate the test rows with the device's runtime and compare with torch's predictions row by row."""
        bundle = self.export()
        target = self.folder / f"accuracy.{choice.key(format_name)}.json"
        kept = self.result(target.name)
        if kept is not None:
            return kept
        options = ["--format", format_name, *choice.arguments, "--data", self.rows_file()]
        result = self._from_device_side("accuracy", bundle.path, *options)
        result |= self.beside_torch(result["predictions"], self.torch_classes())
        write_json(target, result)
        return result

    def torch_classes(self) -> list[int]:
        """Return the class that torch predicts for each test row."""
        classes: list[int] = self._reference_logits().argmax(1).tolist()
        return classes

    def beside_torch(self, predictions: Mapping[str, int], expected: Sequence[int]) -> dict[str, Any]:
        """Return the ids of the test rows whose class (by row id) is not torch's, and how many torch has right."""
        rows, labels = self.dataset.test.row_ids.tolist(), self.dataset.test.labels.tolist()
        return {
            "rows_unlike_torch": [
                row for row, label in zip(rows, expected, strict=True) if predictions[str(row)] != label
            ],
            "torch_correct": sum(came == label for came, label in zip(expected, labels, strict=True)),
        }

    def bench(self, wanted: Sequence[tuple[str, LocalSpec]]) -> None:
        """Measure the latency of each format on the target beside it, where there is no result of the same settings."""
        bundle = self.export()
        for quick in (False, True):
            missing = {}
            for format_name, target in wanted:
                file = self.folder / f"bench.{format_name}.{_target_name(target)}.json"
                settings = {**target.model_dump(exclude_none=True), "quick": target.quick or self.settings.quick}
                if settings["quick"] == quick and not serves(self.result(file.name), settings):
                    missing[file] = (Candidate(bundle.path, _bench_options(format_name, target)), settings)
            if not missing:
                continue
            names = ", ".join(file.name.removeprefix("bench.").removesuffix(".json") for file in missing)
            self.notify(f"measuring latency on this machine: {names}")
            plan = QUICK if quick else FULL
            results = measured_in_turn([candidate for candidate, _ in missing.values()], plan, say=self.notify)
            for (file, (_, settings)), result in zip(missing.items(), results, strict=True):
                write_json(file, {**result, "settings": settings})

    def _from_device_side(self, verb: str, *arguments: object) -> dict[str, Any]:
        """Return what a verb of the device side wrote. The file is not yet a result: what is added here is missing."""
        beside = self.folder / f".{verb}.json.part"
        run_in_own_process(verb, *arguments, "--output", beside)
        result = json.loads(beside.read_text())
        beside.unlink()
        return result

    def rows_file(self) -> Path:
        """Return an .npz of the test rows for the device side, written anew: the recipe's rows may have changed."""
        test = self.dataset.test
        path = self.folder / "test_rows.npz"
        with file_atomically(path) as file:
            write_npz(file, {"inputs": test.inputs, "labels": test.labels, "row_ids": test.row_ids})
        return path


def _identity(bundle: Bundle) -> dict[str, str]:
    """Return what a result file says of the bundle that it belongs to."""
    return {"name": bundle.name, "recipe_key": bundle.recipe_key, "checksum": bundle.checksum}


def on_the_device(bundle: Bundle) -> str:
    """Return how the engines that a bundle lacks are built where it will run."""
    wanted = "; ".join(request.in_words() for request in bundle.missing_engines)
    return f"The bundle keeps what is wanted ({wanted}): edgefold export engine {bundle.path}, on the device"


def _still_holds(parity: Mapping[str, Any], cases: Sequence[tuple[str, EngineChoice]]) -> bool:
    """Return whether a result of earlier is of these cases. What could not be run may be run now."""
    return (
        parity["passed"]
        and parity["format_version"] == PARITY_VERSION
        and set(parity["formats"]) == {choice.key(name) for name, choice in cases}
        and not any(form.get("not_run") for form in parity["formats"].values())
    )


def _label(bench: Mapping[str, Any]) -> str:
    """Return on which engine a latency was measured."""
    chosen = bench["settings"]
    return EngineChoice(chosen.get("engine"), chosen.get("provider"), chosen.get("precision")).label


def _bench_options(format_name: str, target: LocalSpec) -> tuple[str, ...]:
    sizes = (f"--threads={target.threads}", f"--batch={target.batch}")
    return (f"--format={format_name}", *target.choice.arguments, *sizes)


def _target_name(target: LocalSpec) -> str:
    """Return the part of a bench file's name that keeps a recipe's targets apart."""
    name = f"{target.kind}-{target.choice.label}" if target.choice.label else target.kind
    usual = (target.threads, target.batch) == (1, 1)
    return name if usual else f"{name}-threads-{target.threads}-batch-{target.batch}"
