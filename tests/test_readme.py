"""The README: its limits, its links, its table, its snippets and its commands."""

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hub_server import Hub

from gensar_hf.files import read_json

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = ("items.csv", "clicks.csv")
# Settings that make a run short, for tests of form and not of quality.
SHORT = {
    "max_steps": 2, "sasrec_epochs": 0.1, "rqvae_epochs": 1, "item_weight": 1.0, "text_vocab_size": 200,
    "sasrec_config": {"hidden_size": 16, "num_layers": 1},
    "rqvae_config": {"hidden_sizes": [16], "latent_dim": 8},
    "generator_config": {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_heads": 2},
}  # fmt: skip


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def shortened(snippet: str) -> str:
    """The snippet with few training steps."""
    snippet = re.sub(r", max_steps=\d+", "", snippet)
    settings = ", ".join(f"{name}={value}" for name, value in SHORT.items())
    return re.sub(r'GenSARTrainingArguments\(("[^"]+")', rf"GenSARTrainingArguments(\1, {settings}", snippet)


def copy_tables(folder: Path) -> None:
    """The two tables that the first snippet reads."""
    for name in TABLES:
        shutil.copy(ROOT / "notebooks" / name, folder)


def check_answers(printed: str) -> None:
    """Two lists of distinct titles of the catalogue and one of queries, as many as the README shows."""
    titles = set(pd.read_csv(ROOT / "notebooks/items.csv")["title"])
    shown = blocks("text")[0].splitlines()
    answers = [ast.literal_eval(line) for line in printed.splitlines()]
    assert len(answers) == len(shown) == 3
    for answer, shown_line in zip(answers[:2], shown, strict=False):
        assert len(answer) == len(set(answer)) == len(ast.literal_eval(shown_line))
        assert set(answer) <= titles
        assert set(ast.literal_eval(shown_line)) <= titles
    assert len(answers[2]) <= len(ast.literal_eval(shown[2]))
    assert all(isinstance(query, str) and query for query in answers[2])


# ---- limits, links, numbers


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 160
    assert len(README.split()) <= 1300


def test_the_first_snippet_needs_12_lines_and_one_import_and_is_answered_before_line_40() -> None:
    snippet, output = blocks("python")[0], blocks("text")[0]
    assert snippet.count("\n") <= 12
    imports = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [getattr(node, "module", None) for node in imports] == ["gensar_hf"]
    assert README[: README.index(output) + len(output)].count("\n") < 40


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *[f"docs/{p.name}" for p in ROOT.glob("docs/*.md")]])
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in slugs, f"{page} links to {target}"


def test_the_table_shows_the_numbers_of_the_committed_comparisons() -> None:
    (block,) = re.findall(r"<!-- summary: (.*?) ndcg@10 -->\n(.*?)<!-- end of summary -->", README, re.DOTALL)
    comparisons = [read_json(ROOT / path) for path in block[0].split()]
    columns = [(content, task) for content in comparisons for task in ("recommendation", "search")]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block[1].splitlines()[2:]]
    for column, (content, task) in enumerate(columns, start=1):
        means = {
            name: variant["tasks"][task]["NDCG@10"]["mean"]
            for name, variant in content["variants"].items()
            if task in variant["tasks"]
        }
        for row in rows:
            text = f"{means[row[0]]:.3f}".removeprefix("0") if row[0] in means else "–"
            if means.get(row[0]) == max(means.values()):
                text = f"**{text}**"
            assert row[column] == text, (row[0], task)
        # What the sentences below the table say of the best baseline and of the personalized JSR.
        p_values = {
            test["second"]: test["p_value"]
            for test in content["tests"]
            if (test["first"], test["task"], test["metric"]) == ("GenSAR", task, "NDCG@10")
        }
        del means["GenSAR"]
        best = max(means, key=means.__getitem__)
        ahead = {1: ("GRU4Rec", 0.042), 3: ("JSR", 0.023)}.get(column)
        assert (best, round(p_values[best], 3)) == ahead if ahead else p_values[best] > 0.05
        assert p_values["JSR, personalized search"] > 0.05
    # What they say of Beauty with all items ranked.
    systems = read_json(ROOT / "results/amazon-beauty-all-items/comparison.json")["variants"]
    for task, said in {"recommendation": {"GRU4Rec": ".034", "GenSAR": ".030"}, "search": {"GenSAR": ".220"}}.items():
        means = {
            name: each["tasks"][task]["NDCG@10"]["mean"] for name, each in systems.items() if task in each["tasks"]
        }
        assert max(means, key=means.__getitem__) == next(iter(said))
        assert {name: f"{means[name]:.3f}"[1:] for name in said} == said
    assert f"{means['UnifiedSSR']:.3f}" == "0.208"
    sizes = {name: variant["parameters"] for name, variant in comparisons[0]["variants"].items()}
    assert round(sizes["GenSAR"] / sizes["JSR, personalized search"]) == 6


# ---- snippets and commands


def test_the_first_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_tables(tmp_path)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(shortened(blocks("python")[0]), {})
    check_answers(printed.getvalue())
    assert (tmp_path / "films/model/config.json").exists()


@pytest.mark.slow
def test_the_first_snippet_runs_from_the_wheel_alone(tmp_path: Path) -> None:
    """In an empty folder, with the built wheel and its dependencies, as long as the README's run."""
    sources, wheels, target, work = (tmp_path / name for name in ("sources", "wheels", "target", "work"))
    shutil.copytree(ROOT / "gensar_hf", sources / "gensar_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(sources)], check=True)
    (wheel,) = wheels.glob("gensar_hf-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    work.mkdir()
    copy_tables(work)
    # An editable install is found only after PYTHONPATH.
    program = blocks("python")[0] + "\nimport sys, gensar_hf\nprint(gensar_hf.__file__, file=sys.stderr)\n"
    environment = {**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=work, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert Path(done.stderr.splitlines()[-1]).is_relative_to(target)
    check_answers(done.stdout)
    found, shown = (ast.literal_eval(text.splitlines()[1]) for text in (done.stdout, blocks("text")[0]))
    assert found[0] == shown[0], "The README shows another best result of its search."
    (script,) = target.glob("bin/gensar")
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, env=environment, check=True
    )
    assert "add-items" in done.stdout


def write_later_tables(folder: Path) -> None:
    """`newer.csv`: a click of each of 40 users in 2025; `new_items.csv`: three films."""
    clicks = pd.read_csv(folder / "clicks.csv", dtype=str).drop_duplicates("item_id")[:40]
    clicks.assign(user_id=[f"u{row:03d}" for row in range(len(clicks))], timestamp="2025-01-15").to_csv(
        folder / "newer.csv", index=False
    )
    rows = [
        ("arrival", "Arrival", "space", "linguist talks to visitors"),
        ("hereditary", "Hereditary", "horror", "family with a cursed legacy"),
        ("knives-out", "Knives Out", "crime", "detective and a rich family"),
    ]
    pd.DataFrame(rows, columns=["item_id", "title", "genres", "description"]).to_csv(
        folder / "new_items.csv", index=False
    )


@pytest.mark.slow
def test_all_snippets_and_commands_run(tmp_path: Path) -> None:
    copy_tables(tmp_path)
    write_later_tables(tmp_path)
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("gensar ")]
    settings = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    calls = []
    for command in commands:
        words = [re.sub(r"^films\b", "films-cli", word) for word in shlex.split(command, comments=True)[1:]]
        few_steps = ["--text_encoder", "null", *settings] if words[0] == "train" else []
        calls.append(["-m", "gensar_hf", *words, *few_steps])
    calls.append(["-c", shortened("\n".join(blocks("python")))])
    with Hub(token="hf_secret") as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        for arguments in calls:
            done = subprocess.run(
                [sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
            )
            assert done.returncode == 0, f"{arguments[:3]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert (tmp_path / "films-cli/model/config.json").exists()
    assert (tmp_path / "films-3/config.json").exists()
