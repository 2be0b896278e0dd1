"""Run all fuzzers, one after another, and print their counts; exit status 1 if one of them found a fault.

python tests/fuzz/run_all.py --seed 0 --share 0.1
"""

import argparse
import subprocess
import sys
from pathlib import Path

# Fuzzer, and the numbers of its cases at a share of 1.
FUZZERS = {
    "fuzz_tables.py": {"cases": 5000},
    "fuzz_calls.py": {"calls": 10_000},
    "fuzz_folders.py": {"cases": 400},
    "fuzz_requests.py": {"requests": 2000},
    "fuzz_kills.py": {"kills": 250, "double_starts": 50},
}


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of all fuzzers")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of each fuzzer")
    args = parser.parse_args()
    failed = []
    for name, numbers in FUZZERS.items():
        options = {"seed": args.seed} | {key: max(1, round(number * args.share)) for key, number in numbers.items()}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        print(f"== {name} {' '.join(words)}", flush=True)
        if subprocess.run([sys.executable, Path(__file__).with_name(name), *words]).returncode:
            failed.append(name)
    print(f"== faults were found by: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
