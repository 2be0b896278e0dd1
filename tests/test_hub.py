"""Up to the Hub and down again, against a stand-in that speaks its HTTP API; nothing of ours is replaced."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub

CLIENT = Path(__file__).parent / "hub_client.py"
CARD = "---\nlicense: apache-2.0\nlibrary_name: gensar-hf\n---\n\n# Films\n"


@pytest.fixture
def hub():
    with Hub(token="hf_secret") as started:
        yield started


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Callable:
    """Runs one step of `hub_client.py` in a process of its own, as the endpoint is read when the library is."""

    def run(step: str, **variables: str) -> object:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # large files by the older way, which is plain HTTP
            **variables,
        }
        process = subprocess.run(
            [sys.executable, CLIENT, step, tmp_path], capture_output=True, text=True, env=environment, timeout=300
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run


@pytest.mark.slow
def test_a_pushed_model_answers_as_the_local_one(hub, client, pipelines, tmp_path):
    pipe = pipelines["vectors"]
    pipe.save_pretrained(tmp_path / "generator")
    (tmp_path / "generator" / "README.md").write_text(CARD)
    found = client("generator")
    assert found["card"] == CARD
    ways = ("same", "branch", "differs", "commit", "subfolder", "cached")
    assert {way: found[way] for way in ways} == dict.fromkeys(ways, True)
    uploaded = {
        "README.md", "config.json", "generation_config.json", "identifiers.parquet", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    main, branch = hub.files("me/films"), hub.files("me/films", "next")
    assert set(branch) == uploaded | {".gitattributes"}
    assert set(main) == {".gitattributes", *uploaded, *(f"small/one/{name}" for name in uploaded)}
    assert main["identifiers.parquet"] == branch["identifiers.parquet"]
    assert main["model.safetensors"] != branch["model.safetensors"]
    assert hub.repositories["models", "me/films"].is_private
    assert len([request for request in hub.requests if "/commit/" in request]) == 3
    assert "this account may read" in found["private"]
    assert "no such revision" in found["no revision"]
    assert "there is no folder 'me/nothing'" in found["no repository"]
    assert "no repository on the Hub can have that name" in found["no name"]
    assert "was not asked (`local_files_only`)" in found["not asked"]
    assert found["refused"].startswith("Nothing was pushed to 'me/other'")
    assert "hf auth login" in found["refused"]
    assert ("models", "me/other") not in hub.repositories


@pytest.mark.slow
def test_the_other_models_go_to_the_hub_too(hub, client, tmp_path):
    from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
    from gensar_hf.embeddings.modeling_sasrec import SASRecModel
    from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
    from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

    SASRecModel(SASRecConfig(num_items=12, hidden_size=8, max_length=6)).save_pretrained(tmp_path / "collaborative")
    JointRQVAE(JointRQVAEConfig(codebook_size=4, hidden_sizes=[8], latent_dim=4)).save_pretrained(tmp_path / "rqvae")
    assert client("others") == {"rqvae": ["JointRQVAE", True], "collaborative": ["SASRecModel", True]}
    for name in ("rqvae", "collaborative"):
        assert {"config.json", "model.safetensors"} <= set(hub.files(f"me/{name}"))


@pytest.mark.slow
def test_offline_says_so(hub, client):
    loading, pushing = client("offline", HF_HUB_OFFLINE="1")
    assert loading.startswith("The model in me/films cannot be loaded: there is no folder 'me/films'")
    assert "offline mode is on (HF_HUB_OFFLINE)" in loading
    assert pushing.startswith("Nothing was pushed to 'me/films'")
    assert not hub.requests


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_said_to_be_so(client):
    loading, pushing = client("offline", HF_ENDPOINT="http://127.0.0.1:9")
    assert "the Hub could not be reached" in loading
    assert pushing.startswith("Nothing was pushed to 'me/films'")
    assert "check the name, the connection" in pushing
