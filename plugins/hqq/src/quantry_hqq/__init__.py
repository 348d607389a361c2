"""Half-quadratic quantization for Quantry: quantizers, CPU kernels, UQFF tag 2."""
