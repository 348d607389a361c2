"""AFQ, MLX's affine quantization, for Quantry: quantizers, CPU kernels, UQFF tag 4."""
