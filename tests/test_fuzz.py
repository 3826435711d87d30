"""A few hundred cases of the fuzzer; ``python -m tests.fuzz`` runs any number."""

from __future__ import annotations

from tests import fuzz

CASES = 300


def test_whatever_is_spoiled_gives_a_result_or_a_clear_error():
    assert fuzz.run(CASES) == []


def test_the_fuzzer_sees_what_it_is_to_see(tmp_path):
    """Its oracle is not blind: every kind of fault is called one."""

    def leaves_a_traceback() -> int:
        raise RuntimeError

    def says_nothing() -> int:
        return 2

    def names_nothing() -> int:
        fuzz.sys.stderr.write("error: something is wrong\n")
        return 2

    def rings() -> int:
        print("\x1b[31m")
        return 0

    def grows() -> int:
        return len(bytearray(600 * 2**20)) * 0

    def toils() -> int:
        end = fuzz.time.process_time() + fuzz.CPU_SECONDS + 0.1
        while fuzz.time.process_time() < end:
            pass
        return 0

    for bad in (leaves_a_traceback, says_nothing, names_nothing, rings, grows, toils):
        wrong, *_ = fuzz.fault(fuzz.Case(bad, ("train.json",)))
        assert wrong is not None, bad.__name__

    def good() -> int:
        fuzz.sys.stderr.write("error: train.json: record 3: field 'input': is empty\n")
        return 2

    assert fuzz.fault(fuzz.Case(good, ("train.json",)))[0] is None
