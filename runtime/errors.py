"""Every error that edgefold raises on purpose.

EdgefoldError
├── UsageError            exit 2: what was given cannot be used
│   ├── RecipeError       a recipe that cannot be read or does not make sense
│   ├── DataError         data that is missing, truncated or corrupt
│   ├── BundleError       a bundle that is incomplete, altered or unsafe to open
│   └── MissingExtraError a package that this command needs is not installed
├── RunError              exit 1: the work itself failed
│   ├── TrainingError     training diverged or cannot go on
│   ├── ExportError       a graph could not be written or is not valid
│   └── EngineError       an inference engine refused or failed
│       └── DeviceError   it needs hardware that this machine lacks: no failure of the model
└── GateError             exit 3: a parity, accuracy or `expect` gate was missed
"""

from __future__ import annotations


class EdgefoldError(Exception):
    """An error with a message for the user and, where there is one, the way to mend it."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class UsageError(EdgefoldError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(UsageError):
    pass


class BundleError(UsageError):
    pass


class MissingExtraError(UsageError):
    pass


class RunError(EdgefoldError):
    exit_code = 1


class TrainingError(RunError):
    pass


class ExportError(RunError):
    pass


class EngineError(RunError):
    pass


class DeviceError(EngineError):
    pass


class GateError(EdgefoldError):
    exit_code = 3
