"""Text encoders of a few thousand parameters as folders like the published ones: config, tokenizer, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

Kind = Literal["albert", "bert", "distilbert", "roberta"]

SENTENCES = (
    "a moving film of great charm and quiet wit",
    "a dull , awful and boring mess of a movie",
    "fine acting makes this story worth seeing",
    "not for me : too long , too loud , too empty",
    "the camera lingers on every face and every street",
    "neither funny nor clever , it falls flat",
)
VOCABULARY = 120
POSITIONS = 160
WIDTH = 16


def write(folder: Path, *, kind: Kind = "albert", seed: int = 0, positions: int = POSITIONS) -> None:
    """Write an encoder of two layers, 16 wide, with random weights, and a tokenizer of the words of a few sentences.

    albert: Unigram with `<pad>` 0; bert and distilbert: WordPiece with `[PAD]` 0; roberta: WordPiece with `<pad>` 1.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _unigram() if kind == "albert" else _wordpiece("<pad>" if kind == "roberta" else "[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    pad = "<pad>" if kind in ("albert", "roberta") else "[PAD]"
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    config = _config(kind, tokenizer.token_to_id(pad), positions)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():  # the usual ±0.02 leaves so narrow a model with next to no signal
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)


def _config(kind: Kind, padding: int, positions: int):  # type: ignore[no-untyped-def]
    import transformers

    shared = {"vocab_size": VOCABULARY, "max_position_embeddings": positions, "pad_token_id": padding}
    usual = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if kind == "albert":
        return transformers.AlbertConfig(embedding_size=8, **usual, **shared)
    if kind == "distilbert":
        return transformers.DistilBertConfig(dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=24, **shared)
    return (transformers.RobertaConfig if kind == "roberta" else transformers.BertConfig)(**usual, **shared)


def _unigram():  # type: ignore[no-untyped-def]
    """Words and letters by hand: a trained tokenizer breaks ties another way in every process."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<pad>", "<unk>", "[CLS]", "[SEP]"]
    words = dict.fromkeys(" ".join(SENTENCES).split())
    letters = sorted({letter for word in words for letter in word})
    pieces = [(f"\u2581{word}", -3.0) for word in words] + [(letter, -9.0) for letter in ("\u2581", *letters)]
    tokenizer = Tokenizer(models.Unigram([*((each, 0.0) for each in special), *pieces], unk_id=1))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(each, special.index(each)) for each in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _wordpiece(pad: str):  # type: ignore[no-untyped-def]
    """The same words and letters as pieces of words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = dict.fromkeys(" ".join(SENTENCES).split())
    letters = sorted({letter for word in words for letter in word})
    special = [*([pad, "[UNK]"] if pad == "[PAD]" else ["[UNK]", pad]), "[CLS]", "[SEP]"]
    pieces = dict.fromkeys([*special, *words, *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(each, vocabulary[each]) for each in ("[CLS]", "[SEP]")]
    )
    return tokenizer
