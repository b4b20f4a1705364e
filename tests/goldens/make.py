"""Makes the goldens: `python tests/goldens/make.py --out FOLDER [name ...]`, with torch and transformers installed."""

import argparse
import importlib
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))


def main() -> None:
    """Runs makers/<name>.py, each with a function `goldens() -> {name: Golden}`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = sorted(path.stem for path in (HERE / "makers").glob("*.py") if not path.stem.startswith("_"))
    for maker in arguments.names or known:
        for name, golden in importlib.import_module(f"makers.{maker}").goldens().items():
            golden.write(name, arguments.out)
            print(
                f"{name}: {len(golden.cases)} cases, {(arguments.out / name).with_suffix('.npz').stat().st_size} bytes"
            )


if __name__ == "__main__":
    main()
