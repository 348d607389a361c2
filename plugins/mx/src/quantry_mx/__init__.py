"""OCP microscaling floats, MXFP4 and MXFP8, for Quantry: quantizers, CPU kernels, UQFF tag 6."""
