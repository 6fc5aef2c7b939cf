"""Buffers that are used again: of one thread and one process alone."""

import multiprocessing
import threading

from imager.thread_buffers import ThreadBuffers


def test_the_same_memory_for_one_thread_and_another_for_each() -> None:
    buffers = ThreadBuffers(100)
    first = buffers.of(10)
    first[:3] = b"own"
    assert bytes(buffers.of(3)) == b"own"
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(bytes(buffers.of(3))))
    thread.start()
    thread.join()
    assert found == [bytes(3)]
    assert len(buffers.of(5000)) == 5000


def test_a_child_does_not_write_into_the_buffer_of_its_parent() -> None:
    buffers = ThreadBuffers(100)
    buffers.of(3)[:] = b"own"

    def spoil() -> None:
        buffers.of(3)[:] = b"bad"

    child = multiprocessing.get_context("fork").Process(target=spoil)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert bytes(buffers.of(3)) == b"own"
