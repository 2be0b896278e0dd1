import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.errors import InputError
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.identifier_table import (
    IdentifierTable,
    build_identifier_table,
)
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
    assert loaded.available.tolist() == [True, True, True]
    assert loaded.report() == table.report()
    assert list(written.parent.iterdir()) == [written]  # nothing is left aside


def test_report_by_hand():
    report = small_table(available=[True, False, True]).report()
    assert (report["num_items"], report["num_available"]) == (3, 2)
    assert report["semantic"]["collision_rate_after"] == 0
    assert report["semantic"]["items_moved"] == 2
    assert report["prefixes_moved"] == 0
    assert report["semantic"]["codebook_use"] == [2 / 4, 2 / 4, 3 / 4]
    assert report["semantic"]["perplexity"][2] == pytest.approx(3)
    assert report["semantic"]["perplexity"][0] == pytest.approx((1 / 3) ** (-1 / 3) * (2 / 3) ** (-2 / 3))


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
        ({"available": np.ones(2, dtype=bool)}, r"3 items, so `available` must hold as many .* shape \(2,\)"),
        ({"available": np.ones(3)}, r"as many truth values; .* dtype float64"),
        ({"available": np.zeros(3, dtype=bool)}, r"no available item"),
        ({"item_ids": [], "titles": None, "texts": None}, r"for at least one item; got 0 items"),
    ],
)
def test_invalid_tables_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
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
        ({"semantic_codes": [[0, 1, 2], [0, 1, None], [3, 0, 0]]}, r"row 2, column semantic_codes: \[0, 1, None\] is"),
        (
            {"semantic_codes": [[0.5, 1, 2], [0, 1, 3], [3, 0, 0]]},
            r"row 1, column semantic_codes: \[0\.5, 1\.0, 2\.0\]",
        ),
        ({"semantic_codes": ["ab", "cd", "ef"]}, r"row 1, column semantic_codes: 'ab' is not"),
        ({"collaborative_codes": None}, r"ids\.parquet is not an identifier table: the column collaborative_codes"),
        ({"available": [True, None, True]}, r"ids\.parquet, row 2, column available: None is not true or false"),
        ({"available": [1, 0, 1]}, r"ids\.parquet, row 1, column available: 1 is not true or false"),
        ({"available": [False, False, False]}, r"ids\.parquet has no available item"),
    ],
)
def test_malformed_files_name_the_file_and_the_row(tmp_path: Path, columns: dict[str, list], message: str):
    with pytest.raises(InputError, match=message):
        IdentifierTable.load(rewritten(tmp_path / "ids.parquet", **columns))


def test_a_file_without_availability_has_every_item_available(tmp_path: Path):
    loaded = IdentifierTable.load(rewritten(tmp_path / "ids.parquet", available=None))
    assert loaded.available.tolist() == [True, True, True]


@pytest.mark.parametrize("column", ["neighbors", "lenders"])  # the second in version 0.1
def test_files_of_version_0_1_load(tmp_path: Path, column: str):
    path = small_table(neighbors=[[0, 1]]).save(tmp_path)
    table = pq.read_table(path)
    assert table.column_names[-1] == "neighbors"
    renamed = table.rename_columns([*table.column_names[:-1], column])
    pq.write_table(renamed.replace_schema_metadata(table.schema.metadata), path)
    loaded = IdentifierTable.load(path)
    assert (loaded.num_trained, loaded.neighbors.tolist()) == (2, [[0, 1]])


def test_items_frame():
    frame = small_table(available=[True, False, True]).items_frame()
    assert frame.columns.tolist() == ["item_id", "title", "text", "available"]
    assert frame["item_id"].tolist() == ["B004ZT0SSG", "242", "été"]
    assert frame.iloc[1].tolist() == ["242", "", "b", False]
    assert small_table(titles=None).items_frame()["title"].tolist() == ["", "", ""]


def test_missing_damaged_and_foreign_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"identifiers\.parquet does not exist"):
        IdentifierTable.load(tmp_path)
    path = small_table().save(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"identifiers\.parquet is damaged"):
        IdentifierTable.load(tmp_path)
    pq.write_table(pa.table({"item_id": ["a"], "semantic_codes": [[0]], "collaborative_codes": [[0]]}), path)
    with pytest.raises(InputError, match="metadata"):
        IdentifierTable.load(tmp_path)
    metadata = {b"gensar_hf.identifiers": json.dumps({"format_version": 99})}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match="format version 99"):
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
    with pytest.raises(InputError, match="50 embeddings but 2 item ids"):
        build_identifier_table(*tiny_catalogue, ["a", "b"])


def hand_model(offset: float = 0.0, codebook_size: int = 3) -> JointRQVAE:
    """One-dimensional embeddings, encoded as they are; shared codes (0, 0), (10, 10), (20, 20), specific 0, 1, 2."""
    config = JointRQVAEConfig(
        semantic_dim=1, collaborative_dim=1, latent_dim=1, hidden_sizes=[], codebook_size=codebook_size,
        num_shared_levels=1, num_specific_levels=1, quantizer="rq-kmeans",
    )  # fmt: skip
    model = JointRQVAE(config)
    codes = torch.arange(codebook_size, dtype=torch.float32)[:, None] + offset
    with torch.no_grad():
        for layer in (model.semantic_encoder[0], model.collaborative_encoder[0]):
            layer.weight.fill_(1)
            layer.bias.zero_()
        model.shared_quantizer.codebooks[0].copy_(10 * codes.expand(-1, 2))
        model.semantic_quantizer.codebooks[0].copy_(codes)
        model.collaborative_quantizer.codebooks[0].copy_(codes)
    return model


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def hand_table(**texts: list[str] | None) -> IdentifierTable:
    """Two items, on the identifiers (0, 0) / (0, 1) and (1, 2) / (1, 0)."""
    return build_identifier_table(hand_model(), column(0, 12), column(1, 10), ["a", "b"], **texts)


def test_add_items_by_hand():
    """`c` is as near to (0, 0) as `a` and has to take 1.0; `d` is alone; the prefix of `e` is new."""
    table = hand_table()
    assert table.semantic_codes.tolist() == [[0, 0], [1, 2]]
    assert table.collaborative_codes.tolist() == [[0, 1], [1, 0]]
    embeddings = (column(0.25, 10, 21), column(0, 11, 22))
    added = table.add_items(embeddings, ["c", "d", "e"], hand_model())
    assert added.item_ids == ["a", "b", "c", "d", "e"]
    assert added.semantic_codes.tolist() == [[0, 0], [1, 2], [0, 1], [1, 0], [2, 1]]
    assert added.collaborative_codes.tolist() == [[0, 1], [1, 0], [0, 0], [1, 1], [2, 2]]
    assert added.available.all()
    assert added.index_of("d") == 3
    (record,) = added.report()["added"]
    assert record["num_items"] == 3
    assert record["semantic"]["collision_rate_before"] == pytest.approx(1 / 3)
    assert record["semantic"]["items_moved"] == 1
    assert record["semantic"]["distortion_before"] == pytest.approx(0.25**2 / 3)
    assert record["semantic"]["distortion_after"] == pytest.approx(0.75**2 / 3)
    assert record["collaborative"]["collision_rate_before"] == record["collaborative"]["items_moved"] == 0
    assert {name: value for name, value in added.build_report.items() if name != "added"} == table.build_report
    assert (table.num_items, table.item_ids, "added" in table.build_report) == (2, ["a", "b"], False)


@pytest.mark.parametrize(
    ("present", "given", "titles", "texts"),
    [
        ({}, {}, None, None),
        ({"titles": ["A", "B"]}, {"titles": ["C"]}, ["A", "B", "C"], None),
        ({"titles": ["A", "B"]}, {}, ["A", "B", ""], None),
        ({"titles": ["A", "B"], "texts": ["a.", "b."]}, {"texts": ["c."]}, ["A", "B", ""], ["a.", "b.", "c."]),
        ({"titles": ["A", "B"], "texts": ["a.", "b."]}, {"titles": ["C"]}, ["A", "B", "C"], ["a.", "b.", ""]),
    ],
)
def test_titles_and_texts_of_added_items(present: dict, given: dict, titles: list | None, texts: list | None):
    table = hand_table(**present).add_items((column(5), column(5)), ["c"], hand_model(), **given)
    assert (table.titles, table.texts) == (titles, texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_ids": ["c", "c"]}, r"The item 'c' was given 2 times"),
        ({"item_ids": ["c", 7]}, r"Item ids must be strings; got 7, which is of type int"),
        ({"item_ids": ["c", None]}, r"Item ids must be strings; got None"),
        ({"item_ids": "cd"}, r"must be a list of item ids; got the string 'cd'"),
        ({"item_ids": ["c", "b"]}, r"The item 'b' is in the identifier table already; leave it out"),
        ({"item_ids": ["c", "a"]}, r"The item 'a' is .* already, as a removed one; .*`restore_items\(\['a'\]\)`"),
        ({"item_ids": ["c"]}, r"2 embeddings but 1 item ids"),
        ({"titles": ["C"]}, r"2 embeddings but 1 titles"),
        ({"texts": ["c.", "d."]}, r"table has no texts, so the 2 new items can have none"),
        ({"embeddings": (column(1), column(1, 2))}, r"1 semantic but 2 collaborative embeddings"),
        ({"embeddings": (np.ones((2, 3)), column(1, 2))}, r"semantic embeddings have 3 dimensions"),
        ({"embeddings": (column(1, np.nan), column(1, 2))}, r"item 1 .* is nan"),
        ({"embeddings": (np.ones((0, 1)), np.ones((0, 1)))}, r"one row per item"),
        ({"model": hand_model(codebook_size=4)}, r"model has `codebook_size` 4, but .* made with 3"),
        ({"model": hand_model(offset=0.5)}, r"codebooks are not those that the identifiers of the table were made"),
    ],
)
def test_items_that_cannot_be_added(changes: dict, message: str):
    table = hand_table(titles=["A", "B"]).remove_items(["a"])
    arguments = {"embeddings": (column(1, 2), column(1, 2)), "item_ids": ["c", "d"], "model": hand_model(), **changes}
    with pytest.raises(InputError, match=message):
        table.add_items(**arguments)
    assert table.item_ids == ["a", "b"]


def test_a_full_catalogue_says_what_would_do():
    many = (np.zeros((8, 1)), np.zeros((8, 1)))
    with pytest.raises(InputError, match=r"10 items \(2 with an identifier and 8 new\).* 3 levels .* 4 codes"):
        hand_table().add_items(many, list("cdefghij"), hand_model())


@pytest.mark.parametrize(
    ("method", "item_ids", "message"),
    [
        ("remove_items", ["c"], r"'c' cannot be removed, because it is not in the identifier table"),
        ("remove_items", ["242"], r"'242' cannot be removed, because it is removed already"),
        ("remove_items", ["été", "été"], r"'été' was given 2 times"),
        ("remove_items", ["été", "B004ZT0SSG"], r"Removing these 2 items would leave no item available"),
        ("remove_items", "été", r"list of item ids"),
        ("restore_items", ["c"], r"'c' cannot be restored, because it is not in the identifier table"),
        ("restore_items", ["été"], r"'été' cannot be restored, because it was not removed"),
    ],
)
def test_items_that_cannot_be_removed_or_restored(method: str, item_ids: list[str], message: str):
    table = small_table().remove_items(["242"])
    with pytest.raises(InputError, match=message):
        getattr(table, method)(item_ids)
    assert table.available.tolist() == [True, False, True]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_add_remove_restore_save_load(tiny_catalogue: tuple, data: st.DataObject):
    """Whatever is added, removed and restored: rows stay, identifiers stay distinct, and the file keeps all of it."""
    model, semantic, collaborative = tiny_catalogue
    num_old = data.draw(st.integers(1, 40))
    old_ids = [f"old {row}" for row in range(num_old)]
    table = build_identifier_table(model, semantic[:num_old], collaborative[:num_old], old_ids, texts=old_ids)
    num_new = data.draw(st.integers(1, 10))
    picks = data.draw(st.lists(st.integers(0, 49), min_size=num_new, max_size=num_new))  # old items' twins, often equal
    new_ids = [f"new {row}" for row in range(num_new)]
    added = table.add_items((semantic[picks], collaborative[picks]), new_ids, model, texts=new_ids)
    removed_ids = data.draw(st.lists(st.sampled_from(added.item_ids), unique=True, max_size=added.num_items - 1))
    removed = added.remove_items(removed_ids)
    restored_ids = data.draw(st.lists(st.sampled_from(removed_ids), unique=True)) if removed_ids else []
    final = removed.restore_items(restored_ids)
    with TemporaryDirectory() as folder:
        final.save(folder)
        loaded = IdentifierTable.load(folder)

    gone = set(removed_ids) - set(restored_ids)
    for result in (added, removed, final, loaded):
        assert result.item_ids == result.texts == old_ids + new_ids
        for kind, before in (
            ("semantic_codes", table.semantic_codes),
            ("collaborative_codes", table.collaborative_codes),
        ):
            codes = getattr(result, kind)
            assert np.array_equal(codes[:num_old], before)
            assert len(np.unique(codes, axis=0)) == num_old + num_new
    assert loaded.available.tolist() == [item_id not in gone for item_id in added.item_ids]
    assert loaded.report() == final.report()
    assert loaded.report()["num_available"] == loaded.num_available == num_old + num_new - len(gone)
    assert added.available.all()
    assert removed.num_available == num_old + num_new - len(removed_ids)
    assert (table.num_items, table.available.tolist()) == (num_old, [True] * num_old)


@pytest.mark.parametrize("neighbors", [[[0, 2]], [[-1]], [[0], [0], [0], [0]]])
def test_only_trained_items_are_neighbors(neighbors: list):
    with pytest.raises(InputError, match="`neighbors` must name, for each of the last items, rows"):
        small_table(neighbors=neighbors)


def test_only_the_last_rows_have_neighbors(tmp_path: Path):
    path = small_table(neighbors=[[0, 1]]).save(tmp_path)
    pq.write_table(pq.read_table(path).take([2, 0, 1]), path)
    with pytest.raises(InputError, match=r"row 1, column neighbors: only the last rows"):
        IdentifierTable.load(path)


def test_marked_items_come_before_other_added_ones_as_their_own_first_neighbor(make_identifiers: Callable) -> None:
    table = replace(make_identifiers(), neighbors=np.array([[0, 3], [5, 1], [2, 4]]))  # of film-9, film-10 and film-11
    learned = table.remove_items(["film-10"]).mark_trained(["film-11", "film-9"])
    assert learned.item_ids == [*table.item_ids[:9], "film-9", "film-11", "film-10"]
    assert (table.num_marked, learned.num_trained, learned.num_marked) == (0, 9, 2)
    assert learned.neighbors.tolist() == [[9, 0], [10, 2], [5, 1]]
    assert learned.available.tolist() == [True] * 11 + [False]
    for item_id in table.item_ids:
        rows = learned.index_of(item_id), table.index_of(item_id)
        for name in ("semantic_codes", "collaborative_codes", "titles", "texts"):
            assert np.array_equal(getattr(learned, name)[rows[0]], getattr(table, name)[rows[1]])
    assert learned.mark_trained(["film-10"]).neighbors.tolist() == [[9, 0], [10, 2], [11, 5]]
    assert table.mark_trained([]).neighbors.tolist() == table.neighbors.tolist()
    for item_ids in (["film-10", "film-3"], ["film-9"]):
        with pytest.raises(InputError, match=f"'{item_ids[-1]}' is not an added item"):
            learned.mark_trained(item_ids)


@pytest.mark.parametrize("neighbors", [[[9, 0], [9, 1], [2, 4]], [[0, 3], [10, 1], [2, 4]], [[0, 9], [5, 1], [2, 4]]])
def test_an_item_may_be_only_its_own_first_neighbor(make_identifiers: Callable, neighbors: list) -> None:
    with pytest.raises(InputError, match="`neighbors` must name"):
        replace(make_identifiers(), neighbors=np.array(neighbors))


@pytest.mark.parametrize(("num_shared", "num_specific"), [(2, 2), (0, 3), (3, 0)])
def test_neighbors_are_nearest_by_the_sums_of_their_semantic_codes(num_shared: int, num_specific: int):
    rng = np.random.default_rng(0)
    semantic, collaborative = rng.normal(size=(40, 6)), rng.normal(size=(40, 5))
    config = JointRQVAEConfig(
        semantic_dim=6, collaborative_dim=5, latent_dim=4, hidden_sizes=[8], codebook_size=8,
        num_shared_levels=num_shared, num_specific_levels=num_specific,
    )  # fmt: skip
    model = JointRQVAE(config)
    model.fit_standardization(semantic, collaborative)
    model.initialize_codebooks(semantic, collaborative, seed=0)
    table = build_identifier_table(model, semantic[:30], collaborative[:30], [f"item {row}" for row in range(30)])
    added = table.add_items((semantic[30:], collaborative[30:]), [f"new {row}" for row in range(10)], model)
    again = added.add_items((semantic[30:31], collaborative[30:31]), ["twin"], model)
    assert again.neighbors.max() < 30  # never an added item
    codebooks = [*model.shared_quantizer.codebooks, *model.semantic_quantizer.codebooks]
    latents = sum(
        book[:, :4].detach().double().numpy()[codes]
        for book, codes in zip(codebooks, added.semantic_codes.T, strict=True)
    )
    for row, neighbors in enumerate(added.neighbors, start=30):
        distances = np.square(latents[:30] - latents[row]).sum(axis=1)
        assert len(set(neighbors.tolist())) == 5
        np.testing.assert_allclose(distances[neighbors], np.sort(distances)[:5], rtol=1e-3, atol=1e-4)
