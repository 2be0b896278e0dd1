"""Model folders with damage of all kinds: each is answered from rightly, or refused in one sentence.

    python tests/fuzz/fuzz_folders.py --cases 400 --seed 0

A case is a copy of a tiny model folder (T5 with texts and item encoder, decoder-only, or adapter) with one random
change. A process with a limit of memory tries many cases in turn; this one watches its time. The number of a case and
the seed determine the change, so that `--first N --cases 1` repeats case N. Exit status 1: a case went wrong.
"""

import argparse
import json
import os
import pickle
import resource
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

GOOD = ("right", "refused")
BAD = ("traceback", "hang", "memory", "wrong answer", "escaped")
SECONDS, EXTRA_MEGABYTES, GROWTH_MEGABYTES = 20, 1500, 400  # of the processor; of memory
KINDS = ("texts", "causal", "adapter")
HISTORY = [{"item_id": "film-2"}, {"query": "comedy 1990s"}, {"item_id": "film-3", "query": "comedy 1990s"}]
DEEP = "DEEP"  # stands for a list in a list in a list …
VALUES = [
    None, True, False, -1, 0, 1, 3, 10**9, 2**63, 10**30, 1e308, -0.5, float("nan"), float("inf"), "", "x", "a/b",
    "/etc/passwd", "../../outside/secret.json", "../outside", "</s>", "<R_I>", "a" * 200_000, [], [[]], ["x"], [1, 2],
    list(range(20_000)), {}, {"x": 1}, DEEP,
]  # fmt: skip
KEYS = [
    "auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "transformers_weights",
    "tokenizer_file", "vocab_file", "custom_generate", "trust_remote_code", "fusion_config", "use_kernels", "dtype",
    "num_hidden_layers", "tie_word_embeddings", "architectures", "tokenizer_class", "model_type", "is_encoder_decoder",
    "chat_template", "auto_class", "model_max_length", "additional_special_tokens", "extra_special_tokens",
    "base_model_name_or_path", "is_decoder", "rope_parameters", "max_position_embeddings", "layer_types",
]  # fmt: skip

Case = tuple[str, str, str]  # kind of folder, name of the change, what is expected: "any", "refused" or "right"


# ---- the folders


def make_folders(root: Path) -> None:
    """Write one folder of each kind, and a folder outside that no case may open."""
    import torch
    from conftest import QUERIES, build_generator, build_identifiers, texts_pipeline
    from transformers import LlamaConfig, LlamaForCausalLM

    from gensar_hf import GenSARPipeline, JointRQVAE, JointRQVAEConfig
    from gensar_hf.embeddings.cold_start import CollaborativeMap
    from gensar_hf.generator.adapters import AdapterBase, add_adapter, lora_config, save_adapter
    from gensar_hf.generator.initialization import generator_from_causal_lm
    from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
    from gensar_hf.new_items import ItemEncoder

    torch.manual_seed(0)
    rng, identifiers = np.random.default_rng(0), build_identifiers()
    pipe = texts_pipeline(identifiers)
    encoder = pipe.tokenizer.catalogue.texts.encoder
    semantic, collaborative = encoder.encode(identifiers.texts), rng.normal(size=(12, 4)).astype(np.float32)
    sizes = {"semantic_dim": semantic.shape[1], "collaborative_dim": 4, "codebook_size": 4, "latent_dim": 4}
    rqvae = JointRQVAE(JointRQVAEConfig(**sizes, hidden_sizes=[8]))
    for parameter in rqvae.parameters():
        torch.nn.init.normal_(parameter)
    pipe.item_encoder = ItemEncoder(encoder, ("title",), CollaborativeMap.fit(semantic, collaborative, 0), rqvae)
    pipe.card = "# Films\n"
    pipe.save_pretrained(root / "texts")

    words = GenSARTokenizer.train_from_texts([*identifiers.texts, *QUERIES], identifiers, vocab_size=120)
    tokenizer = GenSARTokenizer.from_text_tokenizer(words, identifiers, max_history_events=8, decoder_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    GenSARPipeline(generator_from_causal_lm(llama, tokenizer), tokenizer).save_pretrained(root / "causal")

    tokenizer = GenSARTokenizer.train_from_texts([*identifiers.texts, *QUERIES], identifiers, vocab_size=120)
    model = build_generator(tokenizer, num_items=12)
    GenSARPipeline(model, tokenizer).save_pretrained(root / "base")
    base = AdapterBase.of(model, "../base")
    with_adapter = add_adapter(model, lora_config(model, tokenizer.code_token_ids.tolist(), rank=2))
    with torch.no_grad():
        for parameter in with_adapter.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
    save_adapter(with_adapter, root / "adapter", base)
    tokenizer.save_pretrained(root / "adapter")

    (root / "outside").mkdir()
    (root / "outside" / "secret.json").write_text("{}")
    for name in ("model.safetensors", "identifiers.parquet", "README.md"):
        if (root / "texts" / name).is_file():
            shutil.copy(root / "texts" / name, root / "outside" / name)


def answers_of(folder: Path) -> dict[str, Any]:
    """What a folder answers to requests of all kinds; everything is loaded from it."""
    from gensar_hf import GenSARPipeline

    pipe = GenSARPipeline.from_pretrained(folder, device="cpu")
    answers = {
        "recommend": [(answer["item_id"], answer["score"]) for answer in pipe.recommend(HISTORY, top_k=5)],
        "search": [(answer["item_id"], answer["score"]) for answer in pipe.search("space adventure", HISTORY, top_k=5)],
        "rank": [(answer["item_id"], answer["score"]) for answer in pipe.rank([], ["film-1", "film-7", "film-4"])],
        "suggest": [(answer["query"], answer["score"]) for answer in pipe.suggest_queries(HISTORY)],
    }
    if (folder / "item_encoder").is_dir():
        added = pipe.add_items(pd.DataFrame([{"item_id": "new", "title": "Toy soldiers in space"}]))
        answers["add"] = [(title, 0.0) for title in added[0]["nearest"]]
    return answers


# ---- the changes


def change(folder: Path, outside: Path, kind: str, rng: np.random.Generator) -> Case:
    """Change a folder at random."""
    name = str(rng.choice(list(CHANGES)))
    expected = CHANGES[name](folder, outside, rng)
    return kind, name, expected or "any"


def _any_file(folder: Path, rng: np.random.Generator, suffix: str = "") -> Path:
    files = sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())
    return files[int(rng.integers(len(files)))]


def _flip(folder: Path, outside: Path, rng: np.random.Generator) -> None:
    path = _any_file(folder, rng)
    content = bytearray(path.read_bytes())
    reach = min(len(content), 2048) if rng.random() < 0.5 else len(content)
    for place in rng.integers(reach, size=int(rng.integers(1, 20))) if reach else ():
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def _cut(folder: Path, outside: Path, rng: np.random.Generator) -> None:
    path = _any_file(folder, rng)
    path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size + 1))])


def _empty(folder: Path, outside: Path, rng: np.random.Generator) -> None:
    _any_file(folder, rng).write_bytes(b"")


def _delete(folder: Path, outside: Path, rng: np.random.Generator) -> str | None:
    path = _any_file(folder, rng)
    path.unlink()
    return "refused" if path.name in ("model.safetensors", "identifiers.parquet", "tokenizer.json") else None


def _swap(folder: Path, outside: Path, rng: np.random.Generator) -> None:
    one, other = _any_file(folder, rng), _any_file(folder, rng)
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])


def _junk(folder: Path, outside: Path, rng: np.random.Generator) -> None:
    _any_file(folder, rng).write_bytes(rng.bytes(int(rng.integers(1, 5000))))


def _json_value(folder: Path, outside: Path, rng: np.random.Generator) -> None:
    path = _any_file(folder, rng, ".json")
    content = json.loads(path.read_text())
    places = list(_places(content))
    # Lists of a thousand terms would take all tries.
    named = [place for place in places if isinstance(place[1], str)]
    container, key = (
        places[int(rng.integers(len(places)))]
        if rng.random() < 0.2
        else (named or places)[int(rng.integers(len(named or places)))]
    )
    container[key] = VALUES[int(rng.integers(len(VALUES)))]
    _write_json(path, content)


def _json_key(folder: Path, outside: Path, rng: np.random.Generator) -> None:
    path = _any_file(folder, rng, ".json")
    content = json.loads(path.read_text())
    if isinstance(content, dict):
        evil = [{"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}, "evil"]
        values = [*VALUES, *evil]
        content[str(rng.choice(KEYS))] = values[int(rng.integers(len(values)))]
    _write_json(path, content)
    (folder / "evil.py").write_text(_evil(outside))


def _places(content: Any) -> Any:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000))


def _link(folder: Path, outside: Path, rng: np.random.Generator) -> str:
    path = _any_file(folder, rng)
    path.unlink()
    path.symlink_to(outside / "secret.json" if rng.random() < 0.5 else outside / "model.safetensors")
    return "refused"


def _pipe(folder: Path, outside: Path, rng: np.random.Generator) -> str:
    path = _any_file(folder, rng)
    path.unlink()
    os.mkfifo(path)
    return "refused"


def _evil(outside: Path) -> str:
    return f"import pathlib\npathlib.Path({str(outside / 'PWNED')!r}).touch()\nclass Evil: pass\n"


def _extra(folder: Path, outside: Path, rng: np.random.Generator) -> str:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {outside / 'PWNED'}",)

    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Evil()))
    for name in ("evil.py", "custom_generate/generate.py", "modeling_gensar.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(_evil(outside))
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": "x", "no_repeat_ngram_size": 2}))
    return "right"


def _hostile(folder: Path, outside: Path, rng: np.random.Generator) -> str | None:
    path = folder / ("adapter_config.json" if (folder / "adapter_config.json").is_file() else "config.json")
    (folder / "evil.py").write_text(_evil(outside))
    content = json.loads(path.read_text())
    ways: list[dict[str, Any]] = [
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
        {"attn_implementation": "a/b"}, {"quantization_config": {"quant_method": "mxfp4"}},
        {"num_layers": 10**9, "num_hidden_layers": 10**9}, {"num_items": 10**9}, {"vocab_size": 10**9},
        {"d_model": 10**7, "hidden_size": 10**7}, {"base_model_name_or_path": "some/repository"}, {"r": 10**7},
        {"base_model_name_or_path": "."}, {"target_modules": "(a+)+$"}, {"transformers_weights": "../x.safetensors"},
    ]  # fmt: skip
    way = ways[int(rng.integers(len(ways)))]
    path.write_text(json.dumps({**content, **way}))
    return "refused" if set(way) <= set(content) else None


def _index(folder: Path, outside: Path, rng: np.random.Generator) -> str | None:
    if not (folder / "model.safetensors").is_file():
        return None
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        names = list(tensors.keys())
    (folder / "model.safetensors").unlink()
    target = ["../outside/model.safetensors", str(outside / "model.safetensors"), 7, "missing.safetensors"]
    place = target[int(rng.integers(len(target)))]
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, place)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "refused"


def _tensor(folder: Path, outside: Path, rng: np.random.Generator) -> str | None:
    from safetensors.numpy import load_file, save_file

    path = _any_file(folder, rng, ".safetensors")
    tensors = load_file(path)
    name = str(rng.choice(sorted(tensors)))
    way = int(rng.integers(7))
    values = tensors[name]
    if way == 0:
        del tensors[name]
    elif way == 1:
        tensors["unknown.weight"] = values.copy()
    elif way == 2:
        tensors[name] = np.concatenate([values.reshape(-1), values.reshape(-1)])
    elif way in (3, 4):
        tensors[name] = values.copy()
        tensors[name].reshape(-1)[int(rng.integers(values.size))] = np.nan if way == 3 else np.inf
    elif way == 5:
        tensors[name] = values.astype(np.int8)
    else:
        tensors = {f"model.{key}": value for key, value in tensors.items()}
    if not tensors:
        tensors = {"nothing": np.zeros(1, np.float32)}
    save_file(tensors, path, metadata=_metadata(path))
    # A further array in a file of ours is not read; a map's sharpness of another type is the same number.
    # transformers adds or removes the prefix of a base model where all names have it.
    is_model = path.name in ("model.safetensors", "adapter_model.safetensors") and way != 6
    return "refused" if is_model or way in (0, 2, 3, 4) else None


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def _table(folder: Path, outside: Path, rng: np.random.Generator) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "identifiers.parquet"
    table = pq.read_table(path)
    key = b"gensar_hf.identifiers"
    way = int(rng.integers(6))
    if way == 0:
        metadata = json.loads(table.schema.metadata[key])
        value = VALUES[int(rng.integers(len(VALUES)))]
        metadata[str(rng.choice(["codebook_size", "num_shared_levels", "format_version", "build_report"]))] = value
        text = json.dumps(metadata).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)
        table = table.replace_schema_metadata({**table.schema.metadata, key: text})
    elif way == 1:
        column = str(rng.choice(table.column_names))
        values = table[column].to_pylist()
        values[int(rng.integers(len(values)))] = values[int(rng.integers(len(values)))]
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
    elif way == 2:
        table = table.drop_columns([str(rng.choice(table.column_names))])
    elif way == 3:
        column = str(rng.choice(table.column_names))
        types = [[None] * len(table), list(range(len(table))), [[10**9, -1]] * len(table), ["x"] * len(table)]
        values = types[int(rng.integers(len(types)))]
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
    elif way == 4:  # a small file with gigabytes in it
        text = "a" * 30_000_000
        indices = pa.array(np.zeros(len(table), np.int32))
        values = pa.DictionaryArray.from_arrays(indices, pa.array([text]))
        table = table.set_column(table.column_names.index("text"), "text", values)
    else:
        table = table.take(pa.array(np.tile(np.arange(len(table)), 200_000)))
    pq.write_table(table, path)
    return "refused" if way in (4, 5) else None


CHANGES: dict[str, Callable[[Path, Path, np.random.Generator], str | None]] = {
    "bytes flipped": _flip, "cut": _cut, "emptied": _empty, "deleted": _delete, "swapped": _swap, "junk": _junk,
    "JSON value": _json_value, "JSON value again": _json_value, "JSON key": _json_key, "link": _link, "FIFO": _pipe,
    "extra files": _extra, "hostile settings": _hostile, "index": _index, "tensor": _tensor, "tensor again": _tensor,
    "table": _table,
}  # fmt: skip


# ---- trying a case


class Watch:
    """What is opened and where it is connected to while a case is tried."""

    def __init__(self, outside: Path) -> None:
        self.outside, self.seen = str(outside), list[str]()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(self.outside):
            self.seen.append(f"opened {arguments[0]}")
        elif event in ("socket.connect", "os.system", "subprocess.Popen"):
            self.seen.append(f"{event} {arguments[1:]}"[:100])


def try_case(root: Path, number: int, seed: int, expected: dict[str, Any], watch: Watch) -> tuple[Case, str, str]:
    """Make a case and try it: the case, the class of what happened, and the words."""
    from gensar_hf import InputError

    rng = np.random.default_rng((seed, number))
    kind, outside = KINDS[int(rng.integers(len(KINDS)))], root / "outside"
    with tempfile.TemporaryDirectory(dir=root) as parent:
        folder = Path(parent) / kind
        shutil.copytree(root / kind, folder)
        if kind == "adapter":
            shutil.copytree(root / "base", folder.parent / "base")
        case = change(folder, outside, kind, rng)
        watch.seen.clear()
        before, words = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
        try:
            answers = answers_of(folder)
            found = "right" if _same(answers, expected[kind]) else "other"
        except InputError as error:
            found, words = "refused", str(error)
        except Exception as error:
            found, words = "traceback", f"{type(error).__name__}: {error}"[:300]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if watch.seen or (outside / "PWNED").exists():
        found, words = "escaped", f"{watch.seen[:2]} {words}"
        (outside / "PWNED").unlink(missing_ok=True)
    elif grown > GROWTH_MEGABYTES:
        found, words = "memory", f"{grown:.0f} MB {words}"
    elif found == "refused" and (len(words) > 500 or "\n" in words or case[2] == "right"):
        found, words = "traceback", f"no sentence of at most 500 characters, or needless: {words}"
    elif found == "other":
        # Another number in a file of weights or settings may be a valid model, and is known by nothing.
        found = "wrong answer" if case[2] != "any" or not _is_plausible(answers) else "right"
        words = str(answers)[:300]
    elif found == "right" and case[2] == "refused":
        found, words = "wrong answer", "should have been refused"
    return case, found, words


def _same(answers: dict[str, Any], expected: dict[str, Any]) -> bool:
    return answers.keys() == expected.keys() and all(
        [name for name, _ in answers[kind]] == [name for name, _ in expected[kind]]
        and np.allclose([score for _, score in answers[kind]], [score for _, score in expected[kind]], atol=1e-3)
        for kind in answers
    )


def _is_plausible(answers: dict[str, Any]) -> bool:
    """Distinct answers with finite scores, the best first."""
    for own in (answers[kind] for kind in answers if kind != "add"):
        names, scores = [name for name, _ in own], [score for _, score in own]
        if len(set(names)) < len(names) or not np.isfinite(scores).all() or (np.diff(scores) > 1e-4).any():
            return False
    return True


# ---- many cases


def work(root: Path, first: int, last: int, seed: int) -> None:
    """Try cases in turn, and print a line of JSON after each."""
    expected = json.loads((root / "expected.json").read_text())
    watch = Watch(root / "outside")
    for kind in KINDS:
        answers_of(root / kind)  # imports everything
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + EXTRA_MEGABYTES * 2**20,) * 2)
    print("ready", flush=True)
    for number in range(first, last):
        print(json.dumps([number, *try_case(root, number, seed, expected, watch)]), flush=True)


def main() -> int:
    """Try all cases in processes that are started anew where one hangs or dies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case.")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    number, end = args.first, args.first + args.cases
    if args.worker is not None:
        work(args.worker, number, end, args.seed)
        return 0
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    results: list[tuple[int, Case, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        make_folders(root)
        expected = {kind: answers_of(root / kind) for kind in KINDS}
        (root / "expected.json").write_text(json.dumps(expected))
        while number < end:
            command = [sys.executable, __file__, "--worker", str(root), "--seed", str(args.seed)]
            command += ["--first", str(number), "--cases", str(end - number)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
                number, how = _follow(worker, number, results)
            if how is not None:
                results.append((number, ("?", "?", "any"), how, f"see --first {number} --cases 1"))
                number += 1
    counts = Counter((case[1].removesuffix(" again"), found) for _, case, found, _ in results)
    names = sorted({name for name, _ in counts})
    print(f"{'':<18}" + "".join(f"{each:>14}" for each in (*GOOD, *BAD)))
    for name in names:
        print(f"{name:<18}" + "".join(f"{counts[name, each]:>14}" for each in (*GOOD, *BAD)))
    totals = Counter(found for *_, found, _ in results)
    print(f"{'all':<18}" + "".join(f"{totals[each]:>14}" for each in (*GOOD, *BAD)))
    for number, case, found, words in results:
        if found in BAD:
            print(f"case {number} {case}: {found}: {words}")
    return int(any(totals[each] for each in BAD))


def _seconds_of(process: int) -> float:
    """Processor time of a process; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _follow(worker: subprocess.Popen, number: int, results: list) -> tuple[int, str | None]:
    """Read a worker's lines: the first case without one, and why, or None at the end."""
    is_ready, waited, used = False, 0, _seconds_of(worker.pid)
    while True:
        if not select.select([worker.stdout], [], [], 1)[0]:
            waited += 1
            if is_ready and (_seconds_of(worker.pid) - used > SECONDS or waited > 20 * SECONDS):
                worker.kill()
                return number, "hang"
            continue
        waited, used = 0, _seconds_of(worker.pid)
        line = worker.stdout.readline()
        if not line:
            return number, None if worker.wait() == 0 else "memory"
        if line.startswith("["):
            found, case, kind, words = json.loads(line)
            results.append((found, tuple(case), kind, words))
            number = found + 1
        is_ready |= line.startswith("ready")


if __name__ == "__main__":
    sys.exit(main())
