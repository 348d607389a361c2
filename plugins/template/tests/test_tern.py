from quantry.testing import KernelSuite
from quantry_tern import TernaryGemv


class TestTern(KernelSuite):
    kernel = TernaryGemv()
