"""8-bit floats and f8q8 for Quantry: quantizers, CPU kernels, UQFF tags 3 and 5."""
