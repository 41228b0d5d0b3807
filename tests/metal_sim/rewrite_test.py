# SPDX-License-Identifier: MIT
"""What rewrite.py changes in Metal sources, and what entries.py reads out of them."""

import tempfile
import unittest
from pathlib import Path

from entries import SourceError, generate, parse_constants, parse_instances, parse_kernels
from rewrite import copy_rewritten, rewrite

KERNEL = """
constant int blocks [[function_constant(26)]];
template <typename T, int D>
[[kernel, max_total_threads_per_threadgroup(64)]] void scale(
    const device T* in [[buffer(0)]], device T* out [[buffer(2)]],
    const constant int& n [[buffer(3), function_constant(has_n)]],
    threadgroup T* shared [[threadgroup_argument(1)]],
    uint3 at [[thread_position_in_grid]]) { out[at.x] = in[at.x]; }
kernel void plain(device int* out [[buffer(0)]]) {}
void helper(device int* out) {}
"""


class RewriteTest(unittest.TestCase):
    def test_threadgroup_arrays(self) -> None:
        self.assertEqual(rewrite("  threadgroup U a[BN * BD];"), "  TG_ARRAY(U, a, [BN * BD]);")
        self.assertEqual(rewrite("  threadgroup float x;"), "  TG_ARRAY(float, x, );")
        self.assertEqual(rewrite("  threadgroup T a[2][N];"), "  TG_ARRAY(T, a, [2][N]);")
        for untouched in ("  threadgroup T* p = a;", "void f(threadgroup T* p);", "  int x[3];"):
            self.assertEqual(rewrite(untouched), untouched)

    def test_specialisations_by_address_space(self) -> None:
        text = "template <typename T>\nstruct element<{} T*> {{\n  using type = T;\n}};\n"
        device = text.format("device")
        self.assertEqual(rewrite(device), f"#ifdef MSL_SPACES\n{device}#endif\n")
        self.assertEqual(rewrite(text.format("thread")), text.format("thread"))

    def test_argument_attribute(self) -> None:
        self.assertEqual(rewrite("T* s [[threadgroup(1)]]"), "T* s [[threadgroup_argument(1)]]")

    def test_instantiations(self) -> None:
        text = "int a;\n#define instantiate_x(t) f<t>\ninstantiate_x(int)\n#else\n#endif\n"
        self.assertEqual(rewrite(text), "int a;\n#else\n#endif\n")

    def test_swizzles(self) -> None:
        self.assertEqual(
            rewrite("float2 a = b[0].yx + c2.wwzz.xy;"),
            "float2 a = b[0].template swizzle<1, 0>() + c2.template swizzle<3, 3, 2, 2>().xy;",
        )
        for text in (
            "a.xy = b.zw;",
            "v.xyz",
            "p.x + p.w",
            "3.yx",
            "x3.xy",
            "object.zy(1)",
            "lib.xyzzy",
        ):
            self.assertEqual(rewrite(text), text)

    def test_copying_follows_includes(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name) / "source", Path(name) / "target"
            (source / "a").mkdir(parents=True)
            (source / "a" / "top.h").write_text('#include "a/below.h"\n#include <metal_stdlib>\n')
            (source / "a" / "below.h").write_text("  threadgroup int x;\n")
            copied = copy_rewritten(source, target, ["a/top.h"])
            self.assertEqual(copied, ["a/top.h", "a/below.h"])
            self.assertEqual((target / "a" / "below.h").read_text(), "  TG_ARRAY(int, x, );\n")


class EntriesTest(unittest.TestCase):
    def test_kernels(self) -> None:
        scale, plain = parse_kernels(KERNEL)
        self.assertEqual((scale.name, scale.is_template, scale.max_threads), ("scale", True, "64"))
        self.assertEqual(
            (plain.name, plain.is_template, plain.max_threads), ("plain", False, "1024")
        )
        self.assertEqual(
            [(p.source, p.index, p.name) for p in scale.parameters],
            [
                ("kBuffer", 0, "in"),
                ("kBuffer", 2, "out"),
                ("kBuffer", 3, "n"),
                ("kThreadgroupMemory", 1, "shared"),
                ("kThreadPositionInGrid", 0, "at"),
            ],
        )
        self.assertEqual([p.read_only for p in scale.parameters][:3], [True, False, True])
        self.assertEqual([p.constant for p in scale.parameters][:3], [False, False, True])
        self.assertEqual([p.optional for p in scale.parameters][:3], [False, False, True])

    def test_constants(self) -> None:
        (constant,) = parse_constants(KERNEL)
        self.assertEqual((constant.name, constant.index), ("blocks", 26))

    def test_instances(self) -> None:
        text = (
            'template [[host_name("scale" "_half")]] [[kernel]] '
            "decltype(scale<half, 4>) scale<half, 4>;"
        )
        (instance,) = parse_instances(text)
        self.assertEqual(instance.host_name, "scale_half")
        self.assertEqual((instance.function, instance.expression), ("scale", "scale<half, 4>"))
        with self.assertRaises(SourceError):
            parse_instances(text.replace("decltype(scale<half", "decltype(scale<float"))

    def test_generated_entries(self) -> None:
        source = generate(["k.h"], parse_kernels(KERNEL), [], parse_constants(KERNEL), "ns")
        self.assertIn('namespace ns {\n#include "k.h"\n}', source)
        self.assertIn("sim::make_kernel<&ns::plain>", source)
        self.assertIn("{26, &ns::blocks, sizeof(ns::blocks)}", source)

    def test_unknown_attribute(self) -> None:
        with self.assertRaises(SourceError):
            parse_kernels("kernel void f(device int* a [[texture(0)]]) {}")


if __name__ == "__main__":
    unittest.main()
