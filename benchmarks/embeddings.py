"""Embeddings beside sentence-transformers and onnxruntime: one model's shape, the same texts, in turns.

    python benchmarks/embeddings.py make FOLDER       # all-MiniLM-L6-v2's shape with random weights
    python benchmarks/embeddings.py run FOLDER PEER...    # octavo, octavo-bf16, st, ort: texts a second

`make` needs transformers, `st` sentence-transformers, `ort` onnxruntime and (once) onnx for the export.
Every peer gets texts, tokenizes them by itself and returns normalised means; each runs a case until a
second has passed, twice in turns, in a process of its own, and the best counts. Threads: as many as the
process may use.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROUNDS, SECONDS = 2, 1.0
Embed = Callable[[list[str]], Any]


def words() -> list[str]:
    """The vocabulary: five special tokens and words of letters."""
    rng = random.Random(1)
    made = dict.fromkeys("".join(rng.choices(LETTERS, k=rng.randint(3, 8))) for _ in range(60000))
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *made][: SHAPE["vocab_size"]]


def cases() -> dict[str, list[str]]:
    """name -> texts. A word is a token; two special ones join each text."""
    rng, known = random.Random(2), words()[5:]

    def text(tokens: int) -> str:
        return " ".join(rng.choices(known, k=tokens - 2))

    mixed = [int(min(256, max(6, rng.lognormvariate(3.4, 0.8)))) for _ in range(256)]
    return {
        "one text of 16 tokens": [text(16)],
        "one text of 256 tokens": [text(256)],
        "32 texts of 32 tokens": [text(32) for _ in range(32)],
        "256 texts of 6 to 256 tokens": [text(n) for n in mixed],
    }


def make(folder: Path) -> None:
    """The checkpoint, its tokenizer and sentence-transformers' files."""
    import json

    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**SHAPE)).save_pretrained(folder)
    vocab = {word: i for i, word in enumerate(words())}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": SHAPE["hidden_size"], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))


def octavo(folder: Path, dtype: str) -> Embed:
    """Ours, through LLM.encode."""
    from octavo import LLM

    llm = LLM(str(folder), dtype=dtype, quiet=True)
    return lambda texts: np.stack([one.outputs.data for one in llm.encode(texts, use_tqdm=False)])


def sentence_transformers(folder: Path) -> Embed:
    """SentenceTransformer.encode as it comes: float32, batches of 32, sorted by length."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: model.encode(texts, show_progress_bar=False)


def onnxruntime(folder: Path) -> Embed:
    """A session over the exported model: batches of 32 sorted by length and padded, as its users write it."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    path = folder / "model.onnx"
    if not path.exists():
        _export(folder, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding()

    def embed(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out = np.empty((len(texts), SHAPE["hidden_size"]), np.float32)
        for at in range(0, len(order), 32):
            chosen = order[at : at + 32]
            batch = backend.encode_batch([texts[i] for i in chosen])
            ids = np.array([one.ids for one in batch], np.int64)
            mask = np.array([one.attention_mask for one in batch], np.int64)
            (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            means = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            out[chosen] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return out

    return embed


def _export(folder: Path, path: Path) -> None:
    import torch
    import transformers

    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.ones((2, 16), dtype=torch.long)
    axes = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "tokens"}}
    torch.onnx.export(
        Hidden().eval(),
        (ids, torch.ones_like(ids)),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["hidden"],
        dynamic_axes={**axes, "hidden": {0: "batch", 1: "tokens"}},
        dynamo=False,
    )


PEERS: dict[str, Callable[[Path], Embed]] = {
    "octavo": lambda folder: octavo(folder, "float32"),
    "octavo-bf16": lambda folder: octavo(folder, "bfloat16"),
    "st": sentence_transformers,
    "ort": onnxruntime,
}


def serve(folder: Path, name: str, pipe: Any) -> None:
    """A peer in a process of its own: (case, seconds) in, (texts a second, vectors) out; None ends it."""
    embed = PEERS[name](folder)
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        case, seconds = asked
        texts = cases()[case]
        found = embed(texts)
        begun, calls = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < seconds:
            embed(texts)
            calls += 1
        pipe.send((calls * len(texts) / spent, found))


def run(folder: Path, names: list[str]) -> None:
    """Print texts a second of each peer and case, and how far the vectors are from the first peer's."""
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        pipes[name], other = spawn.Pipe()
        spawn.Process(target=serve, args=(folder, name, other), daemon=True).start()
        pipes[name].recv()
    print(f"| case | {' | '.join(names)} | largest difference |\n|---|{'---|' * (len(names) + 1)}")
    for case in cases():
        best, found = dict.fromkeys(names, 0.0), {}
        for _ in range(ROUNDS):
            for name, pipe in pipes.items():
                pipe.send((case, SECONDS))
                speed, found[name] = pipe.recv()
                best[name] = max(best[name], speed)
        apart = max(float(np.abs(one - found[names[0]]).max()) for one in found.values())
        print(f"| {case} | {' | '.join(f'{best[name]:.1f}' for name in names)} | {apart:.1e} |", flush=True)
    for pipe in pipes.values():
        pipe.send(None)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("make", "run"):
        sys.exit((__doc__ or "").partition("\n\n`make`")[0])
    command, where, *rest = sys.argv[1:]
    make(Path(where)) if command == "make" else run(Path(where), rest)
