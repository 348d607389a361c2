"""Exact float32 values of ggml blocks, in torch, one module per family of block types."""
