"""`gensar train` in several processes of a Ray cluster, by Ray Train; needs `pip install 'gensar-hf[ray]'`.

    python training_scripts/ray_train.py --num_workers 2 --items items.csv --interactions clicks.csv --output_dir films

The other settings are those of `gensar train`. All machines of the cluster (that of `RAY_ADDRESS`, or this one alone)
must see the tables and the output folder, which holds the checkpoints: when a worker dies, all start again from them,
and so does the command when it is given again.
"""

import sys
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from gensar_hf import train
from gensar_hf.cli import StageLines, dataset_and_arguments, exit_status, read_settings, set_up_logging, training_parser
from gensar_hf.errors import InputError


def train_in_worker(settings: dict[str, Any]) -> None:
    """What each process does; Ray has told it its rank as `torchrun` does."""
    set_up_logging()
    dataset, args = dataset_and_arguments(settings)
    train(dataset, args, on_stage=StageLines())


def main() -> None:
    """Read the settings, start the workers, wait."""
    parser = training_parser("ray_train.py", "Train on two tables, in several processes of a Ray cluster.")
    parser.add_argument("--num_workers", type=int, default=2, help="processes.")
    parser.add_argument("--use_gpu", type=bool, default=False, help="a GPU for each process.")
    parser.add_argument("--max_failures", type=int, default=3, help="starts after workers that died.")
    settings = read_settings(parser, sys.argv[1:]).as_dict()
    num_workers, use_gpu, failures = (settings.pop(name) for name in ("num_workers", "use_gpu", "max_failures"))
    if num_workers < 1:
        raise InputError(f"--num_workers must be at least 1; got {num_workers}.")
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    scaling = ScalingConfig(num_workers=num_workers, use_gpu=use_gpu)
    run = RunConfig(failure_config=FailureConfig(max_failures=failures))
    TorchTrainer(train_in_worker, train_loop_config=settings, scaling_config=scaling, run_config=run).fit()
    print(f"The model is in {settings['output_dir']}/model.")


if __name__ == "__main__":
    sys.exit(exit_status(main))
