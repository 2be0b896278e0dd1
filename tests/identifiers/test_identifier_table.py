import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gensar_hf.artifacts import DataError
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.identifier_table import IdentifierTable, build_identifier_table, level_usage
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE


def small_table(**changes: object) -> IdentifierTable:
    fields = {
        "item_ids": ["B004ZT0SSG", "242", "été"],
        "semantic_codes": np.array([[0, 1, 2], [0, 1, 3], [3, 0, 0]]),
        "collaborative_codes": np.array([[0, 2, 2], [0, 1, 1], [3, 0, 0]]),
        "num_shared_levels": 1,
        "codebook_size": 4,
        "titles": ["a", "", "c"],
        "texts": ["a. 1999", "b", "c, \n d"],
        "build_report": {"semantic": {"items_moved": 2}, "prefixes_moved": 0},
    }
    return IdentifierTable(**{**fields, **changes})


def test_tokens_are_numbered_as_in_the_paper():
    table = small_table()
    assert table.semantic_tokens(0) == ["<M1_0>", "<S1_1>", "<S2_2>"]
    assert table.collaborative_tokens(2) == ["<M1_3>", "<R1_0>", "<R2_0>"]
    tokens = table.code_tokens()
    assert len(tokens) == len(set(tokens)) == 4 + 2 * 2 * 4
    assert tokens[:5] == ["<M1_0>", "<M1_1>", "<M1_2>", "<M1_3>", "<S1_0>"]
    used = {token for row in range(3) for token in table.semantic_tokens(row) + table.collaborative_tokens(row)}
    assert used <= set(tokens)


def test_lookup_and_counts():
    table = small_table()
    assert (table.num_items, table.num_levels, table.index_of("242")) == (3, 3, 1)
    with pytest.raises(KeyError):
        table.index_of("243")


@pytest.mark.parametrize("name", ["model", "model/other.parquet"])
@pytest.mark.parametrize("with_texts", [True, False])
def test_round_trip(tmp_path: Path, name: str, with_texts: bool):
    table = small_table() if with_texts else small_table(titles=None, texts=None)
    written = table.save(tmp_path / name)
    assert written.name == ("other.parquet" if name.endswith("parquet") else "identifiers.parquet")
    loaded = IdentifierTable.load(tmp_path / name)
    assert loaded.item_ids == table.item_ids
    assert np.array_equal(loaded.semantic_codes, table.semantic_codes)
    assert np.array_equal(loaded.collaborative_codes, table.collaborative_codes)
    assert (loaded.titles, loaded.texts) == (table.titles, table.texts)
    assert (loaded.num_shared_levels, loaded.codebook_size) == (1, 4)
    assert loaded.report() == table.report()
    assert list(written.parent.iterdir()) == [written]  # nothing is left aside


def test_report_by_hand():
    report = small_table().report()
    assert report["semantic"]["collision_rate_after"] == 0
    assert report["semantic"]["items_moved"] == 2
    assert report["prefixes_moved"] == 0
    assert report["semantic"]["codebook_use"] == [2 / 4, 2 / 4, 3 / 4]
    assert report["semantic"]["perplexity"][2] == pytest.approx(3)
    assert report["semantic"]["perplexity"][0] == pytest.approx((1 / 3) ** (-1 / 3) * (2 / 3) ** (-2 / 3))


def test_perplexity_of_even_and_lonely_codes():
    codes = np.array([[0, 1], [1, 1], [2, 1], [3, 1]])
    assert level_usage(codes, 8) == {"codebook_use": [4 / 8, 1 / 8], "perplexity": [pytest.approx(4), pytest.approx(1)]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_ids": ["a", "b", "a"]}, r"row 3, column item_id: 'a' is that of row 1"),
        ({"item_ids": ["a", "b", 3]}, r"row 3, column item_id: 3 is not a string"),
        ({"item_ids": ["a", "b"]}, r"one row of codes of each kind per item"),
        (
            {"semantic_codes": np.array([[0, 1, 2], [0, 1, 4], [3, 0, 0]])},
            r"row 2, column semantic_codes: code 4 on level 3",
        ),
        (
            {"collaborative_codes": np.array([[0, -1, 2], [0, 1, 1], [3, 0, 0]])},
            r"row 1, column collaborative_codes: code -1",
        ),
        (
            {"semantic_codes": np.array([[0, 1, 2], [0, 1, 2], [3, 0, 0]])},
            r"row 2, column semantic_codes: \(0, 1, 2\) is",
        ),
        ({"semantic_codes": np.array([[0, 1, 2], [0, 1, 3], [2, 0, 0]])}, r"row 3: .* differ on the first 1 levels"),
        ({"titles": ["one"]}, r"3 items but 1 titles"),
    ],
)
def test_invalid_tables_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(DataError, match=message):
        small_table(**changes)


def rewritten(path: Path, **columns: list) -> Path:
    """The saved small table with some columns replaced, its metadata kept; None drops a column."""
    table = pq.read_table(small_table().save(path))
    metadata = table.schema.metadata
    kept = {name: columns.get(name, table[name].to_pylist()) for name in table.column_names}
    pq.write_table(pa.table({k: v for k, v in kept.items() if v is not None}).replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a", "b", "b"]}, r"ids\.parquet, row 3, column item_id: 'b' is that of row 2"),
        ({"item_id": ["a", None, "b"]}, r"ids\.parquet, row 2, column item_id: None is not a string"),
        (
            {"semantic_codes": [[0, 1, 2], [0, 1], [3, 0, 0]]},
            r"ids\.parquet, row 2, column semantic_codes: \[0, 1\] is not",
        ),
        ({"semantic_codes": [[0, 1, 2], None, [3, 0, 0]]}, r"ids\.parquet, row 2, column semantic_codes: None is not"),
        ({"semantic_codes": [[0, 1, 2], [0, 1, 9], [3, 0, 0]]}, r"ids\.parquet, row 2, column semantic_codes: code 9"),
        ({"collaborative_codes": None}, r"ids\.parquet is not an identifier table: the column collaborative_codes"),
    ],
)
def test_malformed_files_name_the_file_and_the_row(tmp_path: Path, columns: dict[str, list], message: str):
    with pytest.raises(DataError, match=message):
        IdentifierTable.load(rewritten(tmp_path / "ids.parquet", **columns))


def test_missing_damaged_and_foreign_files(tmp_path: Path):
    with pytest.raises(DataError, match=r"identifiers\.parquet does not exist"):
        IdentifierTable.load(tmp_path)
    path = small_table().save(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"identifiers\.parquet is damaged"):
        IdentifierTable.load(tmp_path)
    pq.write_table(pa.table({"item_id": ["a"], "semantic_codes": [[0]], "collaborative_codes": [[0]]}), path)
    with pytest.raises(DataError, match="metadata"):
        IdentifierTable.load(tmp_path)
    metadata = {b"gensar_hf.identifiers": json.dumps({"format_version": 99})}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(DataError, match="format version 99"):
        IdentifierTable.load(tmp_path)


@pytest.fixture(scope="module")
def tiny_catalogue() -> tuple[JointRQVAE, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    semantic = np.repeat(generator.standard_normal((25, 6)), 2, axis=0).astype(np.float32)  # every item has a twin
    collaborative = np.repeat(generator.standard_normal((25, 5)), 2, axis=0).astype(np.float32)
    torch.manual_seed(0)
    config = JointRQVAEConfig(semantic_dim=6, collaborative_dim=5, latent_dim=3, codebook_size=8, quantizer="rq-kmeans")
    model = JointRQVAE(config)
    model.fit_standardization(semantic, collaborative)
    model.initialize_codebooks(semantic, collaborative, seed=0)
    return model, semantic, collaborative


def test_built_table_is_unique_and_reports_before_and_after(tiny_catalogue: tuple):
    item_ids = [f"item {row}" for row in range(50)]
    table = build_identifier_table(*tiny_catalogue, item_ids, titles=item_ids)
    report = table.report()
    assert len(np.unique(table.semantic_codes, axis=0)) == len(np.unique(table.collaborative_codes, axis=0)) == 50
    for kind in ("semantic", "collaborative"):
        assert report[kind]["collision_rate_before"] >= 1 / 2
        assert report[kind]["collision_rate_after"] == 0
        assert report[kind]["items_moved"] >= 25
        assert report[kind]["distortion_after"] > report[kind]["distortion_before"]
        assert report[kind]["reconstruction_error_after"] > report[kind]["reconstruction_error_before"]
        assert len(report[kind]["perplexity"]) == 4
    assert table.titles == item_ids
    json.dumps(report)


def test_item_ids_must_match_the_embeddings(tiny_catalogue: tuple):
    with pytest.raises(DataError, match="50 embeddings but 2 item ids"):
        build_identifier_table(*tiny_catalogue, ["a", "b"])
