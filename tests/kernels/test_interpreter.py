"""The tests of the kernels by Triton's interpreter, in one process."""


def test_in_the_interpreter(pass_in_the_interpreter):
    pass_in_the_interpreter(
        "test_gram.py", "test_row_cosine.py", "test_pairwise_cosine.py", "test_pairwise_l2.py", "test_divergence.py"
    )
