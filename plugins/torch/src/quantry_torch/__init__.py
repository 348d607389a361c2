"""torch's own low-bit products for Quantry: int4pack, int8pack, int_mm on CPUs."""
