"""Spectrograms by librosa and by the feature extractor of Whisper, of sounds that need no file."""

import librosa
import numpy as np
from golden import Golden
from seeded import sound
from transformers import WhisperFeatureExtractor

RATE = 16000


def goldens():
    cases = {
        "features/slaney": (
            {"rate": RATE, "mels": 40, "window": 400, "hop": 160, "fft_length": 512, "log": "none", "padding": "zeros"},
            {"sr": RATE, "n_mels": 40, "win_length": 400, "hop_length": 160, "n_fft": 512},
        ),
        "features/htk": (
            {"rate": 8000, "mels": 23, "window": 201, "hop": 77, "lowest": 60.0, "highest": 3700.0, "scale": "htk"}
            | {"area": False, "power": 1.0, "log": "none", "padding": "valid"},
            {"sr": 8000, "n_mels": 23, "n_fft": 201, "hop_length": 77, "fmin": 60.0, "fmax": 3700.0, "htk": True}
            | {"norm": None, "power": 1.0, "center": False},
        ),
        "features/decibel": (
            {"rate": 22050, "mels": 64, "window": 2048, "hop": 512, "log": "decibel", "range_db": 50.0}
            | {"padding": "zeros"},
            {"sr": 22050, "n_mels": 64},
        ),
    }
    made = {}
    for name, (ours, theirs) in cases.items():
        samples = sound(0, 2, 6001)
        output = np.stack([librosa.feature.melspectrogram(y=row, **theirs).T for row in samples])
        if ours["log"] == "decibel":
            output = np.stack([librosa.power_to_db(power, ref=1.0, top_db=50.0) for power in output])
        made[name] = golden(ours, samples, output)
    extract = WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    samples, zeros = sound(0, 2, 12345), RATE - 12345
    padded = np.pad(samples, ((0, 0), (0, zeros)))
    output = extract([*padded], sampling_rate=RATE, return_tensors="np").input_features.transpose(0, 2, 1)
    made["features/whisper"] = golden(
        {"mels": 80, "log": "whisper", "padding": "reflect", "drop_last": True}, samples, output, zeros
    )
    return made


def golden(ours, samples, output, zeros=0):
    # A sample of the values: the whole would be some hundred KB.
    steps = np.unique(np.linspace(0, output.shape[1] - 1, 12).astype(int))
    case = {
        "samples": np.array(samples.shape),
        "zeros": np.array(zeros),
        "steps": steps,
        "output": output[:, steps].astype(np.float32),
    }
    return Golden("LogMel", "librosa", ours, {}, {}, [case])
