"""Kernels and peers against the roof of the machine: what `quantry bench` runs."""
