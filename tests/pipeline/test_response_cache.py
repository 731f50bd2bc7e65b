from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.response_cache import ENTRY_COST, Outputs, ResponseCache, key_of


def outputs(size=10, fill=b"x"):
    return Outputs((fill * size,), ((size,),))


def test_what_is_kept_is_found_until_its_time_is_over():
    cache = ResponseCache(10_000)
    assert cache.get("a", 1) is None
    cache.put("a", outputs(), expires=5)
    cache.put("b", outputs(), expires=0)
    assert cache.get("a", 4) == outputs()
    assert cache.get("a", 5) is None
    assert cache.get("b", 10**18) == outputs()
    assert (len(cache), cache.nbytes) == (1, 10 + ENTRY_COST)
    assert repr(cache) == f"<ResponseCache 1 replies, {10 + ENTRY_COST} of 10000 bytes>"


def test_the_least_recently_used_leaves_first():
    cache = ResponseCache(3 * (ENTRY_COST + 10))
    for key in "abc":
        cache.put(key, outputs(), 0)
    cache.get("a", 1)
    cache.put("d", outputs(), 0)
    assert [cache.get(key, 1) is not None for key in "abcd"] == [True, False, True, True]
    assert cache.evictions == 1


def test_a_reply_that_does_not_fit_is_not_kept_and_costs_nobody_a_place():
    cache = ResponseCache(2 * ENTRY_COST)
    cache.put("a", outputs(), 0)
    cache.put("b", outputs(2 * ENTRY_COST), 0)
    assert cache.get("a", 1) is not None
    assert cache.get("b", 1) is None


def test_a_model_is_forgotten_whole():
    cache = ResponseCache(10_000)
    one, other = object(), object()
    keys = [key_of(model, "look", [b"parts"]) for model in (one, other)]
    for key in keys:
        cache.put(key, outputs(), 0)
    cache.forget(one)
    assert [cache.get(key, 1) is not None for key in keys] == [False, True]


def test_keys_tell_apart_what_differs():
    base = key_of("m", "look", [b"ab", b"c"])
    assert key_of("m", "look", [b"ab", bytearray(b"c")]) == base
    others = [key_of("n", "look", [b"ab", b"c"]), key_of("m", "L", [b"ab", b"c"]), key_of("m", "look", [b"a", b"bc"])]
    assert base not in others


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000), st.integers(0, 20)), max_size=60))
def test_it_never_holds_more_than_it_may(steps):
    cache = ResponseCache(5000)
    for now, (key, size, expires) in enumerate(steps):
        found = cache.get(key, now)
        assert found is None or found.raw[0].startswith(str(key).encode())
        cache.put(key, Outputs((str(key).encode() + b"x" * size,), ((),)), expires)
        assert cache.nbytes <= cache.max_bytes
        assert (cache.nbytes == 0) == (len(cache) == 0)
