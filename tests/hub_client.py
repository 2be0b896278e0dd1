"""What a user does with the Hub, in a process whose HF_ENDPOINT is the stand-in; answers JSON on the last line.

python tests/hub_client.py STEP FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub import HfApi
from transformers import AutoModel

from gensar_hf import GenSARPipeline
from gensar_hf.errors import InputError
from gensar_hf.hub import push_folder

TOKEN = "hf_secret"
HISTORY = [{"item_id": "film-2"}, {"query": "comedy 1990s"}, {"item_id": "film-3", "query": "comedy 1990s"}]


def answers(pipe):
    return [pipe.recommend(HISTORY, top_k=3), pipe.search("space adventure", HISTORY, top_k=3)]


def refusal(action):
    """The message of what cannot be done."""
    try:
        action()
    except InputError as error:
        return str(error)
    return "done"


def attempt(*arguments, **options):
    """The message of what cannot be loaded."""
    return refusal(lambda: GenSARPipeline.from_pretrained(*arguments, **options))


def generator(folder):
    """Push, load again by branch and by commit, from a subfolder, from the cache alone."""
    local, cache = GenSARPipeline.from_pretrained(folder / "generator"), folder / "cache"
    commit = local.push_to_hub("me/films", token=TOKEN, private=True, commit_message="First")
    expected = answers(local)
    with torch.no_grad():
        local.model.lm_head.weight.neg_()
    local.push_to_hub("me/films", token=TOKEN, revision="next")
    changed = answers(local)
    HfApi(token=TOKEN).upload_folder(repo_id="me/films", folder_path=folder / "generator", path_in_repo="small/one")
    options = {"token": TOKEN, "cache_dir": cache}
    pushed = GenSARPipeline.from_pretrained("me/films", **options)
    return {
        "same": answers(pushed) == expected,
        "card": pushed.card,
        "branch": answers(GenSARPipeline.from_pretrained("me/films", revision="next", **options)) == changed,
        "differs": changed != expected,
        "commit": answers(GenSARPipeline.from_pretrained("me/films", revision=commit.rpartition("/")[2], **options))
        == expected,
        "subfolder": answers(GenSARPipeline.from_pretrained("me/films", subfolder="small/one", **options)) == expected,
        "cached": answers(GenSARPipeline.from_pretrained("me/films", local_files_only=True, cache_dir=cache))
        == expected,
        "private": attempt("me/films", cache_dir=folder / "other", token=False),
        "no revision": attempt("me/films", revision="nowhere", **options),
        "no repository": attempt("me/nothing", **options),
        "no name": attempt("no/such/folder"),
        "refused": refusal(lambda: local.push_to_hub("me/other", token="hf_wrong")),
        "not asked": attempt("me/films", local_files_only=True, cache_dir=folder / "other"),
    }


def others(folder):
    """The joint RQ-VAE and SASRec."""
    same = {}
    for name in ("rqvae", "collaborative"):
        local = AutoModel.from_pretrained(folder / name)
        local.push_to_hub(f"me/{name}", token=TOKEN)
        loaded = AutoModel.from_pretrained(f"me/{name}", cache_dir=folder / "cache", token=TOKEN)
        weights, expected = loaded.state_dict(), local.state_dict()
        same[name] = [type(loaded).__name__, all(torch.equal(weights[key], expected[key]) for key in expected)]
    return same


def offline(folder):
    """What is said where nothing can be downloaded or pushed."""
    pushed = refusal(lambda: push_folder(folder, "me/films", token=TOKEN, commit_message="First"))
    return [attempt("me/films", cache_dir=folder / "empty"), pushed]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))) + "\n")
