"""The hub by a stand-in for its library, and by the library itself on local folders where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from compress.datasets import Dataset, DataSpec, declare, describe, fingerprint, load
from compress.datasets.hub import Hub
from runtime.errors import DataError, MissingExtraError
from runtime.text import HashedNgrams

FEATURISER = HashedNgrams(buckets=64, length=8)


class Part:
    """A split as `datasets` gives it: columns, features with an arrow schema, batches."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @property
    def features(self) -> Any:
        features = dict.fromkeys(self.table.column_names)
        return type("Features", (dict,), {"arrow_schema": self.table.schema})(features)

    def select_columns(self, names: list[str]) -> Part:
        return Part(self.table.select(names))

    def with_format(self, form: str) -> Part:
        assert form == "arrow"
        return self

    def iter(self, rows: int) -> Iterator[pa.Table]:
        for first in range(0, len(self.table), rows):
            yield self.table.slice(first, rows)


def part(column: str, inputs: Any, labels: list[Any], names: tuple[str, ...] = ()) -> Part:
    table = pa.table({column: inputs, "label": labels, "extra": [0] * len(labels)})
    features = {"label": {"names": list(names), "_type": "ClassLabel"}} if names else {}
    return Part(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}))


class Library(SimpleNamespace):
    """The module `datasets`, with one data set."""

    __version__ = "4.0.0"

    def __init__(self, **parts: Part) -> None:
        super().__init__(parts=parts, asked=[], table=SimpleNamespace(embed_table_storage=self.embed), embedded=0)

    def load_dataset(self, name: str, config: str | None, *, revision: str | None) -> dict[str, Part]:
        self.asked.append((name, config, revision))
        return self.parts

    def embed(self, table: pa.Table) -> pa.Table:
        self.embedded += 1
        return table


@pytest.fixture
def news(monkeypatch: pytest.MonkeyPatch) -> Library:
    names = ("dull", "fine")
    library = Library(
        train=part("text", ["so dull", "so fine", "fine"], [0, 1, 1], names),
        dev=part("text", ["dull"], [0], names),
        test=part("text", ["fine it is"], [1], names),
    )
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    return library


def spec(**options: Any) -> DataSpec:
    features = {"buckets": FEATURISER.buckets, "length": FEATURISER.length}
    source = {"name": "them/news", "input": "text", "features": features, **options}
    return DataSpec.model_validate({"source": {"hub": source}, "validation": 0})


def read(root: Path, **options: Any) -> Dataset:
    return load(spec(**options), seed=0, data_root=root)


def test_texts_are_fetched_once_and_kept_as_parquet(tmp_path: Path, news: Library) -> None:
    dataset = read(tmp_path, config="small", revision="abc")
    assert (dataset.name, dataset.class_names) == ("news", ("dull", "fine"))
    np.testing.assert_array_equal(dataset.train.inputs, FEATURISER.encode(["so dull", "so fine", "fine"]))
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.test.texts is not None
    assert dataset.test.texts.tolist() == ["fine it is"]
    assert news.asked == [("them/news", "small", "abc")]
    chosen = {"config": "small", "revision": "abc"}
    assert describe(spec(**chosen), tmp_path).rows == {"train": 3, "validation": 0, "test": 1}
    assert fingerprint(spec(**chosen), tmp_path) == dataset.fingerprint
    assert len(news.asked) == 1
    (folder,) = (tmp_path / "hub").iterdir()
    assert folder.name.startswith("them--news-")
    files = ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert pa.parquet.read_schema(folder / files[0]).names == ["text", "label"]


def test_the_copy_is_read_without_the_library(tmp_path: Path, news: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(tmp_path).fingerprint
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    assert read(tmp_path).fingerprint == before
    with pytest.raises(MissingExtraError, match="needs the package 'datasets'") as caught:
        read(tmp_path, revision="other")
    assert caught.value.remedy == "pip install 'edgefold[hub]'"


def test_another_choice_is_another_copy(tmp_path: Path) -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"config": "small"},
        {"revision": "abc"},
        {"splits": {"test": "dev"}},
        {"input_column": "body"},
        {"label_column": "y"},
        {"name": "them/other"},
    ]
    sources = [Hub.model_validate({"name": "them/news", "input": "text", **choice}) for choice in choices]
    assert len({source.where(tmp_path) for source in sources}) == len(choices)
    # How the copy is read is no part of what it is.
    same = Hub.model_validate({"name": "them/news", "input": "text", "input_column": "text", "class_names": ("a", "b")})
    assert same.where(tmp_path) == sources[0].where(tmp_path)


def test_splits_are_what_the_recipe_says(tmp_path: Path, news: Library) -> None:
    dataset = load(
        DataSpec.model_validate(
            {"source": {"hub": {"name": "news", "input": "text", "splits": {"validation": "test", "test": "dev"}}}}
        ),
        seed=0,
        data_root=tmp_path,
    )
    assert dataset.validation.texts is not None
    assert dataset.test.texts is not None
    assert (dataset.validation.texts.tolist(), dataset.test.texts.tolist()) == (["fine it is"], ["dull"])


def test_images_are_embedded_and_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_images: Any, encode: Any
) -> None:
    pixels = random_images(4)
    images = [{"bytes": encode(image), "path": None} for image in pixels]
    column = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    library = Library(train=part("img", column, [0, 1, 0, 1]), test=part("img", column, [1, 0, 1, 0]))
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    source = {"name": "them/pets", "input": "image", "input_column": "img", "class_names": ("cat", "dog")}
    data = DataSpec.model_validate({"source": {"hub": source}, "validation": 0, "augment": ("flip",)})
    dataset = load(data, seed=0, data_root=tmp_path)
    np.testing.assert_array_equal(dataset.train.inputs[..., 0], pixels)
    assert (dataset.class_names, dataset.featuriser, library.embedded) == (("cat", "dog"), None, 2)


def test_what_can_be_known_beforehand_is_declared() -> None:
    text = declare(spec(class_names=("a", "b")))
    assert (text.classes, text.normalization) == (2, None)
    assert text.signature is not None
    assert text.signature.ids is not None
    images = Hub.model_validate({"name": "pets", "input": "image", "size": (6, 5), "mode": "rgb"}).declare()
    assert images.signature is not None
    assert images.signature.shape == (6, 5, 3)


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"splits": {"train": "all"}}, "them/news has no split 'all', only train, dev, test"),
        ({"input_column": "body"}, "them/news has no column 'body', only text, label, extra"),
        ({"label_column": "y"}, "them/news has no column 'y', only text, label, extra"),
    ],
)
def test_splits_and_columns_that_are_not_there_are_told_and_nothing_is_kept(
    tmp_path: Path, news: Library, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read(tmp_path, **options)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionError("Couldn't reach 'them/news' on the Hub"), "cannot be reached from here"),
        (OSError("offline mode is enabled"), "cannot be reached from here"),
        (ValueError("BuilderConfig 'x' not found.\nmore"), "Check name, config and revision"),
        (RuntimeError("Dataset scripts are no longer supported"), "Check name, config and revision"),
    ],
)
def test_what_cannot_be_fetched_says_why(
    tmp_path: Path, news: Library, monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(news, "load_dataset", fail)
    first = str(error).splitlines()[0]
    with pytest.raises(DataError, match=f"them/news cannot be fetched: {type(error).__name__}: {first}") as caught:
        read(tmp_path)
    assert remedy in caught.value.remedy
    assert "more" not in caught.value.message


def test_a_library_that_may_run_code_is_refused(tmp_path: Path, news: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "__version__", "3.6.0")
    with pytest.raises(MissingExtraError, match=r"version 3.6.0, expected 4 or newer"):
        read(tmp_path)
    assert not news.asked


def test_without_a_data_root_there_is_no_place_for_the_copy(news: Library) -> None:
    with pytest.raises(DataError, match="no data root is named, under which a copy of it is kept") as caught:
        load(spec(), seed=0)
    assert "--data-root DIR" in caught.value.remedy
    assert not news.asked


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"name": "https://huggingface.co/datasets/x"}, "name"),
        ({"name": "a/b/c"}, "name"),
        ({"input": "sound"}, "input"),
        ({"size": (4, 4)}, "input"),
        ({"input": "image"}, "features"),
        ({"splits": {"dev": "dev"}}, "dev"),
    ],
)
def test_options_that_cannot_be_stand_at_their_place(options: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec(**options)
    assert where in [place for error in caught.value.errors() for place in error["loc"]]


# The library itself


@pytest.mark.filterwarnings("default")
def test_the_library_reads_a_local_folder(tmp_path: Path, encode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets", reason="needs the extra hub")
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for place, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.png").write_bytes(encode(np.full((6, 5), 10 * place + number, np.uint8)))
    data = DataSpec.model_validate({"source": {"hub": {"name": "pets", "input": "image"}}, "validation": 0})
    dataset = load(data, seed=0, data_root=tmp_path / "root")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
