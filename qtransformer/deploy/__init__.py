"""From a checkpoint to what a robot controller loads: `export` needs torch, `controller` only numpy and onnxruntime."""
