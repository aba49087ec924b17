"""Published text encoders (ALBERT, BERT, DistilBERT, MiniLM, ...) under a linear classifier, by their own code.

An encoder is `AutoModel` of Hugging Face transformers, from the `config.json` of a folder or of the hub
(`compress.pretrained`); nothing of a repository's own code is run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.kinds import as_recipe_value
from compress.models.base import Classifier, ModelSpec, id_shape, initialise, without_tail
from compress.pretrained import CONFIG, content_of, file_of, folder_with_weights, require, weights_content
from export.graph import InputSignature
from runtime.errors import DataError

Pooling = Literal["cls", "mean", "pooler"]


class Encoder(nn.Module):
    """Ids (N, L) → one vector a text (N, D): that of the first token, the mean over tokens, or the encoder's pooler's.

    Padding is neither attended to nor averaged, so a text has the same vector in a batch of any length. The first
    position always counts, or a row of nothing but padding would have no value.
    """

    def __init__(self, transformer: nn.Module, pooling: Pooling, padding: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or ids.is_meta):
            ids = without_tail(ids, self.padding, least=1)  # attention is quadratic in the length
        used = ids != self.padding  # (N, L)
        used = torch.cat([torch.ones_like(used[:, :1]), used[:, 1:]], 1)
        # On the meta device transformers would look into the mask; it changes no shape.
        mask = None if ids.is_meta else used.long()
        output = self.transformer(input_ids=ids.long(), attention_mask=mask)
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output  # (N, D)
            return pooled
        hidden: Tensor = output.last_hidden_state  # (N, L, D)
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = used[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


class EncoderClassifier(Classifier):
    """An encoder, dropout, the classifier. The one feature is the pooled vector, (N, D), before dropout."""

    feature_names = ("pooled",)

    def __init__(self, encoder: Encoder, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, outputs)

    def stage(self, x: Tensor, index: int) -> Tensor:
        pooled: Tensor = self.encoder(x)
        return pooled

    def embed(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.dropout(x)
        return embedding


class PretrainedSpec(ModelSpec):
    """What models around a published encoder share: its name, its config, and its weights as a start."""

    pretrained: bool = True

    @property
    def name_of_encoder(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} must define name_of_encoder")

    def build_encoder(self, signature: InputSignature, pooling: Pooling) -> tuple[Encoder, int]:
        """Return the encoder with random weights, and the width D of its vectors.

        Raises ValueError for rows that it cannot take, DataError where there is no config.
        """
        length, ids = id_shape(signature)
        name = self.name_of_encoder
        if not signature.dynamic_length:
            raise ValueError(
                f"an encoder takes the ids of its tokenizer, and the data is {signature} of hashed n-grams; "
                f"write `features: {{tokenizer: {name}}}`"
            )
        config = _config(name)
        transformer = _transformer(config, pooling)
        _require_fit(name, config, transformer, length, ids, signature.padding)
        return Encoder(transformer, pooling, signature.padding), int(config.hidden_size)

    def load_pretrained(self, model: Classifier) -> None:
        encoder = model.get_submodule("encoder")
        assert isinstance(encoder, Encoder)
        if self.pretrained:
            encoder.transformer.load_state_dict(_published_weights(self.name_of_encoder, encoder.transformer))

    def outside(self) -> Hashable:
        path = file_of(self.name_of_encoder, CONFIG, network=True)
        return path, path.stat().st_mtime_ns

    def content(self) -> dict[str, str]:
        """Return the sha256 of the files that decide the weights, by name."""
        name = self.name_of_encoder
        files = {CONFIG: content_of(file_of(name, CONFIG, network=True))}
        return files | (weights_content(name, network=True) if self.pretrained else {})


class EncoderSpec(PretrainedSpec):
    """A published text encoder, all of it trained, and a linear classifier on one vector a text.

    name: a folder with config.json and model.safetensors, one below EDGEFOLD_MODELS, or a name on the Hugging Face hub.
    pretrained: start from its weights, else from random ones. pooling: `cls` is the first token's vector, `mean` that
    over tokens, `pooler` what the encoder's own pooler makes of the first one. dropout: before the classifier; those
    inside are the config's. `init` is that of the classifier.
    """

    kind = "encoder"

    name: Annotated[str, Field(min_length=1)]
    pooling: Pooling = "cls"
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def name_of_encoder(self) -> str:
        return self.name

    def build(self, *, signature: InputSignature, outputs: int) -> EncoderClassifier:
        encoder, width = self.build_encoder(signature, self.pooling)
        model = EncoderClassifier(encoder, width, outputs, self.dropout)
        initialise(model.classifier, self.init)
        return model

    def resolved(self) -> dict[str, Any]:
        options = as_recipe_value(self)[self.kind]
        del options["name"]  # the same files under another name are the same encoder
        return {self.kind: {**options, "content": self.content()}}


def _config(name: str) -> Any:
    path = file_of(name, CONFIG, network=True)
    return _config_at(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _config_at(path: Path, changed_ns: int) -> Any:
    transformers = require("transformers", "an encoder")
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(
                path.parent, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # ValueError, KeyError, OSError, ImportError: whatever the file makes of it
        raise DataError(f"{path}: not a config that transformers knows: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise DataError(f"{path}: '{config.model_type}' is no text encoder", "Name one such as albert-base-v2.")
    return config


def _transformer(config: Any, pooling: Pooling) -> nn.Module:
    transformers = require("transformers", "an encoder")
    with _quiet():
        transformer: nn.Module = transformers.AutoModel.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    has_pooler = getattr(transformer, "pooler", None) is not None
    if pooling == "pooler" and not has_pooler:
        raise ValueError(f"pooling: pooler, and '{config.model_type}' has none; write cls or mean")
    if pooling != "pooler" and has_pooler:
        transformer.pooler = None  # type: ignore[assignment]  # weights that nothing would read
    return transformer


def _require_fit(name: str, config: Any, transformer: nn.Module, length: int, ids: int, padding: int) -> None:
    if ids > config.vocab_size:
        raise ValueError(f"the tokenizer has {ids:,} ids, and the encoder '{name}' {config.vocab_size:,}")
    own = getattr(config, "pad_token_id", None)
    if own is not None and own != padding:
        raise ValueError(f"the tokenizer pads with id {padding}, and the encoder '{name}' with {own}")
    longest = _positions(transformer)
    if longest is not None and length > longest:
        raise ValueError(f"the tokenizer gives up to {length} ids, and the encoder '{name}' takes {longest}")


def _positions(transformer: nn.Module) -> int | None:
    """Return how many ids the table of absolute positions is long enough for, None where there is no table."""
    for module_name, module in transformer.named_modules():
        if module_name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts from the row behind that of its padding.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None


def _published_weights(name: str, transformer: nn.Module) -> Mapping[str, Tensor]:
    """Return the published weights of `transformer`, by name. Raises DataError where some are missing or misshapen."""
    transformers = require("transformers", "an encoder")
    folder = folder_with_weights(name, network=True)
    try:
        with _quiet():
            published, report = transformers.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, OSError, RuntimeError: whatever the files make of it
        raise DataError(f"{folder}: its weights cannot be read: {_first_line(error)}") from error
    wanted = transformer.state_dict()
    if missing := sorted(set(report["missing_keys"]) & set(wanted)):
        raise DataError(
            f"{folder}: its weights lack {', '.join(missing[:5])}", "Take another pooling, or other weights."
        )
    return {key: value for key, value in published.state_dict().items() if key in wanted}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars and advice of transformers off the terminal; failures stay exceptions."""
    logging = require("transformers", "an encoder").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
