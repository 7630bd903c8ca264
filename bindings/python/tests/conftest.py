"""Fixtures of all tests: a seed, a small cache, threads that take turns often."""

import sys

import pytest
import torch

import pagedkv


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def many_turns():
    """Threads pass the interpreter lock on after microseconds, so that they meet in more places and finish sooner."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def make_cache():
    """A small cache; keyword arguments override its shape."""

    def make(**options):
        defaults = dict(num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=16, dtype="f32", page_size=4, capacity_pages=64)
        return pagedkv.KvCache(**{**defaults, **options})

    return make
