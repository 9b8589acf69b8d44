"""The tests of the kernels for rows and pairs of states by Triton's interpreter."""


def test_in_the_interpreter(pass_in_the_interpreter):
    pass_in_the_interpreter("test_row_cosine.py", "test_pairwise_cosine.py", "test_pairwise_l2.py")
