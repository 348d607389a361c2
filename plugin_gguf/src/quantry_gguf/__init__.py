"""GGUF files, ggml block layouts and their CPU kernels for Quantry."""
