#!/usr/bin/env python3
"""Tests of the law checker: a good tree passes, and each breach in a bad tree is reported by file, line and law."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from check_layers import Checker, functions  # noqa: E402

SENTENCE = "// One file of a tree that the tests made.\n"
GOOD = {
    "src/README.md": "| room | what |\n| --- | --- |\n| `pool/` | Pages. |\n| `kernels/` | SIMD. |\n| `attention/` | Plans. |\n",
    "include/pagedkv/types.h": SENTENCE + "#pragma once\n#include <cstdint>\n",
    "include/pagedkv/page_pool.h": SENTENCE + '//\n// Layer: pool.\n#include "pagedkv/types.h"\n',
    "include/pagedkv/attention.h": SENTENCE + '//\n// Layer: attention.\n#include "pagedkv/types.h"\n',
    "src/pool/list.h": SENTENCE + "#include <cstddef>\n",
    "src/pool/pool.cc": SENTENCE + '#include "pool/list.h"\n#include "memory/range.h"\n#include "pagedkv/page_pool.h"\n',
    "src/kernels/a.cc": SENTENCE + '#include "hwy/highway.h"\n#include "pagedkv/attention.h"\n',
    "src/attention/plan.cc": SENTENCE + '#include <tbb/task_arena.h>\n#include "kernels/attend.h"\n',
    "tests/unit/pool/list_test.cc": SENTENCE + '#include "pool/list.h"\n',
    "tools/main.cc": SENTENCE + '#include "pagedkv/page_pool.h"\n',
}


def breaches(**changes):
    """Checks the good tree with some files changed; keys are paths with / and . written as __ and _dot_."""
    with tempfile.TemporaryDirectory() as folder:
        files = dict(GOOD)
        files.update({k.replace("__", "/").replace("_dot_", "."): v for k, v in changes.items()})
        for path, text in files.items():
            file = pathlib.Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return Checker(folder).run()


class Laws(unittest.TestCase):
    def assert_reported(self, found, *parts):
        self.assertEqual(len(found), 1, found)
        for part in parts:
            self.assertIn(part, found[0])

    def test_a_good_tree_has_no_breach(self):
        self.assertEqual(breaches(), [])

    def test_storage_may_not_include_compute(self):
        self.assert_reported(breaches(src__pool__bad_dot_cc=SENTENCE + '#include "kernels/attend.h"\n'),
                             "src/pool/bad.cc:2", "pool/ may not include kernels/attend.h (kernels)")

    def test_a_kernel_may_not_include_a_public_header_of_storage(self):
        self.assert_reported(breaches(src__kernels__bad_dot_cc=SENTENCE + '#include "pagedkv/page_pool.h"\n'),
                             "kernels/ may not include pagedkv/page_pool.h (pool)")

    def test_a_lower_room_may_not_include_a_higher_one(self):
        self.assert_reported(breaches(src__kernels__bad_dot_cc=SENTENCE + '#include "attention/plan.h"\n'), "(attention)")

    def test_tbb_stays_out_of_the_kernels(self):
        self.assert_reported(breaches(src__kernels__bad_dot_cc=SENTENCE + "#include <tbb/parallel_for.h>\n"), "oneTBB")

    def test_intrinsics_stay_out_of_attention(self):
        self.assert_reported(breaches(src__attention__bad_dot_cc=SENTENCE + "#include <immintrin.h>\n"), "intrinsics")

    def test_os_headers_stay_out_of_the_pool(self):
        self.assert_reported(breaches(src__pool__bad_dot_cc=SENTENCE + "#include <sys/mman.h>\n"), "OS headers")

    def test_a_public_header_may_not_include_a_private_one(self):
        self.assert_reported(breaches(include__pagedkv__bad_dot_h=SENTENCE + '#include "pool/list.h"\n'), "public header")

    def test_a_public_header_may_not_include_a_dependency(self):
        self.assert_reported(breaches(include__pagedkv__bad_dot_h=SENTENCE + "#include <tbb/tbb.h>\n"), "standard library")

    def test_a_header_of_storage_may_not_include_one_of_compute(self):
        self.assert_reported(breaches(include__pagedkv__bad_dot_h=SENTENCE + '// Layer: pool.\n#include "pagedkv/attention.h"\n'),
                             "a header of pool may not include pagedkv/attention.h")

    def test_tools_and_benches_see_public_headers_only(self):
        self.assert_reported(breaches(tools__bad_dot_cc=SENTENCE + '#include "pool/list.h"\n'), "public headers only")
        self.assert_reported(breaches(bench__bad_dot_cc=SENTENCE + '#include "../src/pool/list.h"\n'), "public headers only")

    def test_a_folder_that_is_no_room_is_reported(self):
        found = breaches(src__util__x_dot_h=SENTENCE + "#include <cstddef>\n")
        self.assertTrue(any("util/ is no room" in line for line in found), found)
        self.assertTrue(any("says nothing about util/" in line for line in found), found)

    def test_a_file_that_does_not_say_what_it_is_for_is_reported(self):
        self.assert_reported(breaches(src__pool__bad_dot_cc="#include <cstddef>\n"), "src/pool/bad.cc:1", "not a sentence")
        self.assert_reported(breaches(src__pool__bad_dot_cc="#pragma once\n"), "not a sentence")

    def test_a_long_file_is_reported(self):
        self.assert_reported(breaches(src__pool__bad_dot_cc=SENTENCE + "int x;\n" * 600), "601 lines; 600 at most")

    def test_a_long_function_is_reported_with_its_name_and_first_line(self):
        body = SENTENCE + "namespace a {\nint big(int x) {\n" + "  if (x) { ++x; }\n" * 69 + "}\n}\n"
        self.assert_reported(breaches(src__pool__bad_dot_cc=body), "src/pool/bad.cc:3", "big has 71 lines; 70 at most")

    def test_braces_in_comments_and_literals_do_not_count(self):
        text = "// {{{\nint f() {\n  const char* a = \"{\";\n  char b = '{';\n  /* { */\n}\nstruct S {\n  int g() { return 1; }\n};\n"
        self.assertEqual(list(functions(text)), [(2, 5, "f"), (8, 1, "g")])


if __name__ == "__main__":
    unittest.main()
