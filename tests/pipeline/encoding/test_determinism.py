import threading
from typing import Any

import torch

from pipeline.encoding.determinism import exact_numerics


def settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )  # fmt: skip


EXACT = (1, True, True, False, False)


def test_inside_everything_is_exact_and_outside_as_it_was() -> None:
    before = settings()
    torch.set_num_threads(2)
    try:
        with exact_numerics():
            assert settings() == EXACT
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[0])
    assert settings() == before


def test_a_thread_that_leaves_does_not_loosen_the_numerics_of_one_that_stays() -> None:
    before, seen = settings(), []
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with exact_numerics():
            inside.set()
            assert leave.wait(60)
            seen.append(settings())

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(60)
    with exact_numerics():
        pass
    leave.set()
    thread.join()
    assert seen == [EXACT]
    assert settings() == before
