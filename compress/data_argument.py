"""Data that a command line names: a kind, or YAML `kind: {options}`, checked as in a recipe."""

from __future__ import annotations

from pydantic import ValidationError

from compress.datasets import DataSpec
from compress.recipe_report import problems_of
from compress.yaml_document import Problem, read_document
from runtime.errors import UsageError


def data_argument(text: str, argument: str) -> DataSpec:
    """Return the data that `text` names. Nothing of it is cut off.

    argument: what the command line calls it. Raises UsageError naming everything that is wrong with it.
    """
    document = read_document(text)
    problems = document.problems
    if not problems:
        try:
            return DataSpec.model_validate({"source": document.value, "validation": 0.0})
        except ValidationError as error:
            problems = problems_of(error, DataSpec, document)
    raise UsageError("\n".join(f"{argument}: {_said(problem)}" for problem in problems), _remedy(problems))


def _said(problem: Problem) -> str:
    option = ".".join(map(str, problem.path[1:]))
    return f"{option}: {problem.message}" if option else problem.message


def _remedy(problems: tuple[Problem, ...]) -> str:
    own = next((problem.remedy for problem in problems if problem.remedy), "")
    return own or 'Write a data set\'s kind, such as cifar100, or "folder: {path: photos}".'
