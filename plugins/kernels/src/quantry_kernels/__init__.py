"""Headers and CMake functions for native kernels; needed while a plugin is built, never at run time."""
