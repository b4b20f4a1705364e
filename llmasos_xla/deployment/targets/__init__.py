"""Somebody else's formats: one file a target, and what they share.

subject        what is exported, and our own answers to hold a copy to
formulas       programs in the operators that a converter knows
checking       a copy is compared before it is handed over; nothing stays of one that is refused
bundle         our own, tried as the others are
to_onnx        ONNX through jax2onnx
quantized      ONNX in 8 bits
to_openvino    OpenVINO's intermediate representation, for Intel's CPUs, GPUs and NPUs
to_iree        IREE modules, from StableHLO
to_tensorflow  SavedModel and LiteRT through jax2tf

`deployment.exporting.export` is the public door.
"""
