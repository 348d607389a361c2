from quantry.testing import KernelSuite
from quantry_template import TwoBitGemv


class TestTwoBitGemv(KernelSuite):
    kernel = TwoBitGemv()
