"""The sources that a recipe can name: one file a family, one line a source."""

from __future__ import annotations

from compress.datasets.celeba import Celeba
from compress.datasets.criteo import Criteo
from compress.datasets.digits import Digits
from compress.datasets.folder import Folder
from compress.datasets.hub import Hub
from compress.datasets.idx import Idx
from compress.datasets.imagenet import ImageNet
from compress.datasets.named import Cifar10, Cifar100, Mnist, Stl10
from compress.datasets.named_text import AmazonReviews, Cola, Imdb, RottenTomatoes, Sentiment140, Sst2
from compress.datasets.parquet import Parquet
from compress.datasets.text_parquet import TextParquet
from compress.datasets.text_table import TextCsv, TextJsonl
from compress.kinds import Spec

SOURCES: dict[str, type[Spec]] = {
    "digits": Digits,
    "parquet": Parquet,
    "folder": Folder,
    "idx": Idx,
    "mnist": Mnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "stl10": Stl10,
    "celeba": Celeba,
    "imagenet": ImageNet,
    "hub": Hub,
    "text_parquet": TextParquet,
    "text_csv": TextCsv,
    "text_jsonl": TextJsonl,
    "sst2": Sst2,
    "cola": Cola,
    "rotten_tomatoes": RottenTomatoes,
    "imdb": Imdb,
    "amazon_reviews": AmazonReviews,
    "sentiment140": Sentiment140,
    "criteo": Criteo,
}
