"""The folder CMake searches: scikit-build-core reads the entry point group `cmake.root`."""
