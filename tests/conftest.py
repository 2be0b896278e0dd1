"""Tiny objects that tests of the generator and of what stands on it share: built in memory, in under a second.

Session-scoped objects are read only; a test that changes one works on a copy.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, TokenizersBackend

from gensar_hf.data import Behavior, Split, UserEvents
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.generator.backbones import Backbone
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.initialization import generator_from_causal_lm, generator_from_scratch
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.text_matching import TextIndex
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer, titles_and_texts
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.pipeline import GenSARPipeline

TITLES = (
    "Toy Story", "Star Wars", "Alien", "The Godfather", "Fargo", "Braveheart", "Casablanca", "Vertigo", "Jaws",
    "Blade Runner", "Amadeus", "The Sting",
)  # fmt: skip
GENRES = ("comedy", "space adventure", "horror", "crime drama")
QUERIES = ("comedy 1990s", "space adventure", "crime drama", "horror classics")
R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM

# One user a row: a click (R, item), a query (Q, query) or a click for it (S, item, query).
USERS: dict[str, list[tuple]] = {
    "ann": [(R, 0), (Q, 0), (S, 1, 0), (S, 2, 0), (R, 3), (Q, 1), (S, 4, 1), (R, 5), (Q, 2), (S, 6, 2), (R, 7)],
    "bob": [(Q, 1), (S, 9, 1), (R, 8), (R, 1), (Q, 2), (S, 3, 2), (R, 10), (R, 11), (Q, 3), (S, 2, 3)],
    "cem": [(R, 4), (R, 5), (R, 6), (R, 7), (R, 9), (R, 0)],
}
TRAIN_LENGTHS = {"ann": 7, "bob": 6, "cem": 4}


def build_identifiers(num_items: int = 12, codebook_size: int = 4, prefix: str = "film-") -> IdentifierTable:
    """Two shared and two specific levels; three items under each shared prefix, told apart by the third code."""
    rows = np.arange(num_items)
    shared = np.stack([rows // 6, rows // 3 % 2], axis=1)
    semantic = np.column_stack([shared, rows % 3, 2 * rows % codebook_size])
    collaborative = np.column_stack([shared, codebook_size - 1 - rows % 3, rows % codebook_size])
    titles = [TITLES[row % len(TITLES)] for row in rows]
    texts = [f"{title}. {GENRES[row % len(GENRES)]}" for row, title in enumerate(titles)]
    item_ids = [f"{prefix}{row}" for row in rows]
    return IdentifierTable(item_ids, semantic, collaborative, 2, codebook_size, titles, texts)


def build_events(
    users: dict[str, list[tuple]],
    item_ids: Sequence[str],
    queries: Sequence[str] = QUERIES,
    timestamps: Sequence[float] | None = None,
) -> UserEvents:
    """User events from rows written as in `USERS`; times count up unless given."""
    rows = [row for user_rows in users.values() for row in user_rows]
    return UserEvents(
        user_ids=list(users),
        item_ids=list(item_ids),
        query_texts=list(queries),
        offsets=np.cumsum([0, *map(len, users.values())]),
        behaviors=np.array([row[0] for row in rows], dtype=np.int8),
        items=np.array([-1 if row[0] == Q else row[1] for row in rows], dtype=np.int64),
        queries=np.array([{R: -1, Q: row[1], S: row[-1]}[row[0]] for row in rows], dtype=np.int64),
        timestamps=np.arange(len(rows), dtype=np.float64) if timestamps is None else np.array(timestamps, float),
    )


@pytest.fixture(scope="session")
def make_identifiers() -> Callable[..., IdentifierTable]:
    return build_identifiers


@pytest.fixture(scope="session")
def make_events() -> Callable[..., UserEvents]:
    return build_events


@pytest.fixture(scope="session")
def identifiers() -> IdentifierTable:
    return build_identifiers()


@pytest.fixture(scope="session")
def tiny_events(identifiers: IdentifierTable) -> UserEvents:
    return build_events(USERS, identifiers.item_ids)


@pytest.fixture(scope="session")
def tiny_split(tiny_events: UserEvents) -> Split:
    """The last click of each task is held out of ann and bob, two clicks are of cem."""
    train_ends = tiny_events.offsets[:-1] + list(TRAIN_LENGTHS.values())
    tests = {RECOMMENDATION: np.array([10, 18, 26]), SEARCH: np.array([9, 20])}
    test = {task: Requests(task, tiny_events, targets) for task, targets in tests.items()}
    nothing = {task: requests.subset([]) for task, requests in test.items()}
    return Split(tiny_events, train_ends, nothing, test)


@pytest.fixture(scope="session")
def tokenizers(identifiers: IdentifierTable) -> dict[str, GenSARTokenizer]:
    """One tokenizer for each history encoding, with the same vocabulary."""
    texts = [*(identifiers.texts or []), *QUERIES]
    return {
        encoding: GenSARTokenizer.train_from_texts(
            texts, identifiers, vocab_size=120, history_encoding=encoding, max_history_events=8
        )
        for encoding in ("events", "tokens")
    }


def build_generator(tokenizer: GenSARTokenizer, seed: int = 0, **config: int) -> GenSARForConditionalGeneration:
    """Random weights, no dropout, few position buckets, so that wrong positions show."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = generator_from_scratch(GenSARConfig(**{**sizes, **buckets, "dropout_rate": 0.0, **config}), tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="session")
def make_generator() -> Callable[..., GenSARForConditionalGeneration]:
    return build_generator


@pytest.fixture(scope="session")
def generators(tokenizers: dict[str, GenSARTokenizer]) -> dict[str, GenSARForConditionalGeneration]:
    return {encoding: build_generator(tokenizer) for encoding, tokenizer in tokenizers.items()}


@pytest.fixture(scope="session")
def text_tokenizer(tokenizers: dict[str, GenSARTokenizer]) -> TokenizersBackend:
    """As the tiny tokenizers were before they took the behavior and code tokens in."""
    backend = Tokenizer.from_str(tokenizers["tokens"].backend_tokenizer.to_str())
    words = Tokenizer(backend.model)
    words.normalizer, words.pre_tokenizer, words.decoder = backend.normalizer, backend.pre_tokenizer, backend.decoder
    return TokenizersBackend(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def causal_pipeline(
    text_tokenizer: TokenizersBackend, identifiers: IdentifierTable, tmp_path_factory
) -> GenSARPipeline:
    """A tiny Llama with random weights, large enough that wrong positions show."""
    folder, options = tmp_path_factory.mktemp("causal"), {"max_history_events": 8, "decoder_only": True}
    tokenizer = GenSARTokenizer.from_text_tokenizer(text_tokenizer, identifiers, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(text_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, eos_token_id=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=None,
        )  # fmt: skip
        llama = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in llama.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(10)
        llama.save_pretrained(folder)
        model = generator_from_causal_lm(Backbone(str(folder)).causal_model(), tokenizer)
    return GenSARPipeline(model, tokenizer)


@pytest.fixture(scope="session")
def pipelines(
    generators: dict[str, GenSARForConditionalGeneration],
    tokenizers: dict[str, GenSARTokenizer],
    causal_pipeline: GenSARPipeline,
    identifiers: IdentifierTable,
) -> dict[str, GenSARPipeline]:
    """One for each history encoding, one with item vectors, one that also matches texts, and a decoder-only model."""
    pipelines = {encoding: GenSARPipeline(generators[encoding], tokenizers[encoding]) for encoding in generators}
    with_vectors = build_generator(tokenizers["events"], num_items=12)
    with torch.no_grad():
        for parameter in with_vectors.encoder.items.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    with_vectors = GenSARPipeline(with_vectors, tokenizers["events"])
    return {**pipelines, "vectors": with_vectors, "texts": texts_pipeline(identifiers), "causal": causal_pipeline}


def texts_pipeline(identifiers: IdentifierTable) -> GenSARPipeline:
    """A model with item vectors that matches texts, by an encoder that was fitted on them."""
    titles, texts = titles_and_texts(identifiers)
    encoder = TextEncoder.load(None, texts, dim=6)
    tokenizer = GenSARTokenizer.train_from_texts(
        [*texts, *QUERIES], identifiers, vocab_size=120, history_encoding="events", max_history_events=8
    )
    tokenizer.attach_identifiers(identifiers, TextIndex(titles, texts, encoder.encode(texts), encoder))
    model = build_generator(tokenizer, num_items=12, text_dim=6)
    with torch.no_grad():
        for part in (model.encoder.items, model.encoder.text.channel_weights):
            for parameter in part.parameters():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return GenSARPipeline(model, tokenizer)


@pytest.fixture(scope="session")
def model_dirs(pipelines: dict[str, GenSARPipeline], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The saved models: read only; copy before changing."""
    folders = {}
    for encoding, pipeline in pipelines.items():
        folders[encoding] = tmp_path_factory.mktemp("saved") / encoding
        pipeline.model.save_pretrained(folders[encoding])
        pipeline.tokenizer.save_pretrained(folders[encoding])
    return folders


@pytest.fixture(params=["events", "tokens"])
def encoding(request: pytest.FixtureRequest) -> str:
    """Runs a test once for each history encoding."""
    return request.param


@pytest.fixture(params=["tokens", "vectors", "texts", "causal"])
def kind(request: pytest.FixtureRequest) -> str:
    """Runs a test for histories as tokens, events with item vectors and with texts, and a decoder-only model."""
    return request.param


@pytest.fixture
def pipe(pipelines: dict[str, GenSARPipeline], kind: str) -> GenSARPipeline:
    return pipelines[kind]


@pytest.fixture
def events_pipe(pipelines: dict[str, GenSARPipeline]) -> GenSARPipeline:
    return pipelines["events"]


@pytest.fixture(scope="session")
def tiny_data():
    """The dataset of `tiny_runs.make_tables`."""
    import tiny_runs

    return tiny_runs.make_dataset()


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `train`: read only; copy before changing."""
    import tiny_runs

    from gensar_hf.training.stages import train

    folder = tmp_path_factory.mktemp("tiny") / "run"
    train(tiny_data, tiny_runs.arguments(folder))
    return folder


@pytest.fixture
def tiny_pipe(tiny_run: Path) -> GenSARPipeline:
    """The pipeline of `tiny_run`, loaded for this test alone."""
    return GenSARPipeline.from_pretrained(tiny_run / "model", device="cpu")
