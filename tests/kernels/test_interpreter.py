"""The sums' own tests by Triton's interpreter; the other kernels' are in a file of theirs, for another core."""


def test_in_the_interpreter(pass_in_the_interpreter):
    pass_in_the_interpreter("test_gram.py")
