"""bitsandbytes' 4-bit types, NF4 and FP4, for Quantry: quantizers and CPU kernels."""
