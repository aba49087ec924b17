"""The sources that a recipe can name: one file a family, one line a source."""

from __future__ import annotations

from compress.datasets.criteo import Criteo
from compress.datasets.digits import Digits
from compress.datasets.folder import Folder
from compress.datasets.idx import Idx
from compress.datasets.named import Cifar10, Cifar100, Mnist
from compress.datasets.named_text import Cola, RottenTomatoes, Sst2
from compress.datasets.parquet import Parquet
from compress.datasets.text_parquet import TextParquet
from compress.kinds import Spec

SOURCES: dict[str, type[Spec]] = {
    "digits": Digits,
    "parquet": Parquet,
    "folder": Folder,
    "idx": Idx,
    "mnist": Mnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "text_parquet": TextParquet,
    "sst2": Sst2,
    "cola": Cola,
    "rotten_tomatoes": RottenTomatoes,
    "criteo": Criteo,
}
