"""Published encoders: sizes from a config alone, poolings by hand, weights as published, rows that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
from torch import Tensor

from compress.models import ModelSpec, parameter_count, profile_of, shapes_of
from compress.models.embedding_mlp import EmbeddingMLPSpec
from compress.models.encoder import EncoderSpec
from compress.optimization import OPTIMIZERS
from export.graph import DeployableGraph, InputSignature, Preprocess
from export.to_onnx import onnx_from_graph
from runtime.errors import DataError

KINDS = ("albert", "bert", "distilbert", "roberta")
LENGTH, IDS = 24, 60
TOKENS = InputSignature.of_ids(LENGTH, IDS, dynamic_length=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_encoders.write(folder / kind, kind=kind)
    return folder


@pytest.fixture(autouse=True)
def _models(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFOLD_MODELS", str(folders))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def signature(kind: str) -> InputSignature:
    return InputSignature.of_ids(LENGTH, IDS, padding=1 if kind == "roberta" else 0, dynamic_length=True)


def built(spec: EncoderSpec | EmbeddingMLPSpec, kind: str = "bert", outputs: int = 4) -> Any:
    torch.manual_seed(0)
    model = spec.build(signature=signature(kind), outputs=outputs)
    spec.load_pretrained(model)
    return model.eval()


def some_ids(padding: int = 0, rows: int = 5) -> Tensor:
    """Rows of 3, 6, 9, ... ids, the rest padding."""
    ids = torch.randint(2, IDS, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[torch.arange(LENGTH) >= 3 * (1 + torch.arange(rows))[:, None]] = padding
    return ids.int()


# Sizes, from a config alone


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "millions"),
    [(768, 12, 12, 12), (1024, 24, 16, 18), (2048, 24, 16, 60), (4096, 12, 64, 235)],
    ids=["base", "large", "xlarge", "xxlarge"],
)
def test_albert_has_the_published_parameters(
    tmp_path: Path, hidden: int, layers: int, heads: int, millions: int
) -> None:
    """Lan et al. 2020, table 1, in millions; the largest two print 60 and 235 and are 59 and 223 by their own sizes.

    Nothing but config.json is there.
    """
    config = {
        "model_type": "albert", "vocab_size": 30000, "embedding_size": 128, "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * hidden, "pad_token_id": 0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    albert = InputSignature.of_ids(128, 30000, dynamic_length=True)
    with_pooler = parameter_count(EncoderSpec(name=str(tmp_path), pooling="pooler"), signature=albert, outputs=2)
    without = parameter_count(EncoderSpec(name=str(tmp_path)), signature=albert, outputs=2)
    assert with_pooler - without == hidden * hidden + hidden
    table = {768: 11_683_584, 1024: 17_683_968, 2048: 58_724_864, 4096: 222_595_584}
    assert with_pooler - (2 * hidden + 2) == table[hidden]
    assert abs(with_pooler / 1e6 / millions - 1) < 0.06
    shapes = shapes_of(EncoderSpec(name=str(tmp_path)), signature=albert, outputs=2)
    assert (shapes.embedding, shapes.features, shapes.feature_names) == (hidden, ((hidden,),), ("pooled",))


def test_the_profile_counts_shared_layers_each_time(folders: Path) -> None:
    profile = profile_of(EncoderSpec(name="albert"), signature=TOKENS, outputs=4)
    width, inner, table = tiny_encoders.WIDTH, 24, 8
    layer = 4 * width * width + 2 * width * inner  # queries, keys, values, output; the two of the feed-forward part
    assert profile.total_macs == LENGTH * (2 * layer + table * width) + width * 4
    assert "the products of attention (queries with keys, weights with values) count as 0 MACs" in profile.notes


# What it gives


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_poolings_are_those_of_the_encoders_own_output(folders: Path, kind: str, pooling: str) -> None:
    import transformers

    padding = signature(kind).padding
    model = built(EncoderSpec(name=kind, pooling=pooling), kind)  # type: ignore[arg-type]
    ids = some_ids(padding)
    own = transformers.AutoModel.from_pretrained(folders / kind).eval()
    with torch.no_grad():
        output = model(ids)
        for row, embedding in zip(ids, output.embedding, strict=True):
            alone = row[row != padding][None].long()
            hidden = own(input_ids=alone).last_hidden_state[0]
            expected = hidden[0] if pooling == "cls" else hidden.mean(0)
            torch.testing.assert_close(embedding, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(output.logits, model.classifier(output.embedding))
    assert model.from_feature(output.features[0], 0).equal(output.logits)


def test_the_pooler_is_the_encoders_own(folders: Path) -> None:
    import transformers

    model = built(EncoderSpec(name="bert", pooling="pooler"))
    own = transformers.AutoModel.from_pretrained(folders / "bert").eval()
    ids = some_ids()
    with torch.no_grad():
        expected = own(input_ids=ids.long(), attention_mask=(ids != 0).long()).pooler_output
        torch.testing.assert_close(model(ids).embedding, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        *((kind, EncoderSpec(name=kind, pooling="mean")) for kind in KINDS),
        ("bert", EncoderSpec(name="bert", pooling="pooler")),
        ("albert", EmbeddingMLPSpec(encoder="albert", hidden=(7, 5))),
    ],
    ids=[*KINDS, "pooler", "embedding_mlp"],
)
def test_every_kind_exports_for_any_batch_and_length(kind: str, spec: EncoderSpec | EmbeddingMLPSpec) -> None:
    import onnxruntime

    of_kind = signature(kind)
    graph = DeployableGraph(Preprocess(of_kind, None), built(spec, kind), 2, 2).eval()
    session = onnxruntime.InferenceSession(onnx_from_graph(graph, of_kind, metadata={}))
    assert session.get_inputs()[0].shape == ["batch", "length"]
    full = some_ids(of_kind.padding)
    nothing = torch.full((2, 4), of_kind.padding, dtype=torch.int32)
    for ids in (full, full[:1, :3], full[:3, :9], full[:2, :1], nothing):
        (logits,) = session.run(["logits"], {"input": ids.numpy()})
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(logits, graph(ids).detach().numpy(), atol=1e-5)


# Weights


def test_published_weights_are_a_start_and_random_ones_another(folders: Path) -> None:
    first, again = (built(EncoderSpec(name="albert"), "albert") for _ in range(2))
    random = built(EncoderSpec(name="albert", pretrained=False), "albert")
    published = _published(folders / "albert")
    for name, value in first.encoder.transformer.state_dict().items():
        assert value.equal(again.encoder.transformer.state_dict()[name])
        assert value.equal(published[name])
        if value.ndim > 1:
            assert not value.equal(random.encoder.transformer.state_dict()[name])


def _published(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_frozen_encoder_does_not_move_and_its_layers_do(folders: Path) -> None:
    spec = EmbeddingMLPSpec(encoder="bert", hidden=(7, 5))
    model = built(spec).train()
    assert not model.encoder.training  # no dropout in it either
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 6
    optimizer = OPTIMIZERS["adamw"](lr=0.1, weight_decay=0.1).build(trained)
    model(some_ids()).logits.square().sum().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert value.equal(before[name]) == name.startswith("encoder."), name
    output = model(some_ids())
    assert [feature.shape[1] for feature in output.features] == [7, 5]


def test_weights_that_lack_some_are_refused(folders: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(folders / "bert", tmp_path / "bert")
    kept = {name: value for name, value in _published(tmp_path / "bert").items() if "layer.1.attention" not in name}
    save_file(kept, tmp_path / "bert/model.safetensors", metadata={"format": "pt"})
    spec = EncoderSpec(name=str(tmp_path / "bert"))
    with pytest.raises(DataError, match=r"its weights lack encoder\.layer\.1\.attention"):
        spec.load_pretrained(spec.build(signature=TOKENS, outputs=2))


def test_pickled_weights_are_no_weights(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "bert", tmp_path / "bert")
    (tmp_path / "bert/model.safetensors").rename(tmp_path / "bert/pytorch_model.bin")
    spec = EncoderSpec(name=str(tmp_path / "bert"))
    with pytest.raises(DataError, match=r"no model\.safetensors beside its config\.json") as caught:
        spec.resolved()
    assert "pretrained: false" in caught.value.remedy
    assert spec.model_copy(update={"pretrained": False}).resolved()["encoder"]["content"].keys() == {"config.json"}


def test_code_of_a_repository_is_never_run(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "bert", tmp_path / "bert")
    config = json.loads((tmp_path / "bert/config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "bert/config.json").write_text(json.dumps(config))
    (tmp_path / "bert/mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="not a config that transformers knows"):
        EncoderSpec(name=str(tmp_path / "bert")).build(signature=TOKENS, outputs=2)
    assert not (tmp_path / "ran").exists()


def test_a_folder_goes_before_the_models_root(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_encoders.write(tmp_path / "bert", kind="bert", seed=3)
    of_root = EncoderSpec(name="bert").resolved()
    monkeypatch.chdir(tmp_path)
    assert EncoderSpec(name="bert").resolved() != of_root


# What does not fit


@pytest.mark.parametrize(
    ("name", "options", "rows", "said"),
    [
        ("bert", {}, InputSignature.of_ids(8, 60), "write `features: {tokenizer: bert}`"),
        ("bert", {}, InputSignature((28, 28, 1)), "the model takes text, and the data is images of 28×28×1"),
        ("bert", {}, InputSignature.of_ids(8, 500, dynamic_length=True), "has 500 ids, and the encoder 'bert' 120"),
        ("roberta", {}, TOKENS, "the tokenizer pads with id 0, and the encoder 'roberta' with 1"),
        (
            "bert",
            {},
            InputSignature.of_ids(161, 60, dynamic_length=True),
            "up to 161 ids, and the encoder 'bert' takes",
        ),
        ("roberta", {}, InputSignature.of_ids(159, 60, padding=1, dynamic_length=True), "159 ids, .* takes 158"),
        ("distilbert", {"pooling": "pooler"}, TOKENS, "'distilbert' has none; write cls or mean"),
    ],
)
def test_rows_that_an_encoder_cannot_take(name: str, options: dict[str, Any], rows: InputSignature, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EncoderSpec(name=name, **options).build(signature=rows, outputs=2)


@pytest.mark.parametrize("model", ["t5", "gpt-of-nobody"])
def test_what_is_no_encoder_is_refused(tmp_path: Path, model: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    with pytest.raises(DataError, match=r"is no text encoder|not a config that transformers knows"):
        EncoderSpec(name=str(tmp_path)).build(signature=TOKENS, outputs=2)


def test_specs_of_one_encoder_share_a_key_wherever_it_lies(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "bert", tmp_path / "elsewhere")
    specs: list[ModelSpec] = [EncoderSpec(name="bert"), EncoderSpec(name=str(tmp_path / "elsewhere"))]
    assert specs[0].resolved() == specs[1].resolved()
    assert specs[0].resolved() != EncoderSpec(name="bert", pooling="mean").resolved()
    assert set(specs[0].resolved()["encoder"]["content"]) == {"config.json", "model.safetensors"}
