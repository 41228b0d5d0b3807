# SPDX-License-Identifier: MIT
"""Each rule of lint.py finds its mistake, and leaves right code alone."""

import unittest

from lint import lint

RIGHT = """
#include <metal_stdlib>
using namespace metal;
struct Params { long rows; float scale; };
constant constexpr float kLog2OfE = 1.44f;
constant int kTable[2] = {1, 2};
constant bool causal [[function_constant(3)]];
template <typename Pointer> struct Tile {
  Pointer data;
  static constant constexpr const int kRows = 8;
  Tile() thread {}
  int rows() const thread { return kRows; }
  static METAL_FUNC constexpr int columns() { return 4; }
};
METAL_FUNC float load(const device float* p, int i) { return p[i] * i; }
METAL_FUNC float load(const device float* p) { return load(p, 0); }
METAL_FUNC void take(thread float& x, threadgroup float (&shared)[8]) { x = shared[0] * 2.0f; }
template <int n> METAL_FUNC int sum() { if constexpr (n > 0) return n + sum<n - 1>(); return 0; }
template <typename T>
[[kernel]] void f(const device T* q [[buffer(0)]], device T* o [[buffer(1)]],
                  constant Params& params [[buffer(2)]],
                  uint3 group [[threadgroup_position_in_grid]]) {
  float a = params.scale, b = 1e-3f;
  const int rows = int(params.rows * 2);
  for (int i = 0; i < rows && a > b; i++) o[i] = q[i] * a;
  take(a, *reinterpret_cast<threadgroup float (*)[8]>(o));
}
"""


def complaints(code: str) -> str:
    return "\n".join(str(c) for c in lint({"a.h": code}))


class LintTest(unittest.TestCase):
    def expect(self, code: str, text: str) -> None:
        self.assertIn(text, complaints(code), f"in {code!r}")

    def test_right_code(self) -> None:
        self.assertEqual(complaints(RIGHT), "")

    def test_line_numbers(self) -> None:
        self.expect("\n// float* x\nvoid f(float* x) {}", "a.h:3: 'float*' names no address space")

    def test_pointers_without_address_space(self) -> None:
        for code in (
            "void f(float* p) {}",
            "void f(const float& p) {}",
            "struct S { int n; }; void f(device float* a, S& s) {}",
            "template <typename T> void f(T* p) {}",
            "void f() { float* p = nullptr; }",
            "void f(device char* c) { g(reinterpret_cast<half*>(c)); }",
            "void f() { float2 x; auto& y = x; }",
        ):
            self.expect(code, "names no address space")

    def test_products_are_no_pointers(self) -> None:
        self.assertEqual(
            complaints("int f(int a, int b) { int c = a * b; return (a & b) * c; }"), ""
        )

    def test_members_without_thread(self) -> None:
        self.expect(
            "struct S { int n() const { return 1; } };", "member function n has no 'thread'"
        )
        self.expect("struct S { int n(); int m() { return 1; } };", "member function m")
        self.expect(
            "namespace a { struct S { void set(int v) { x = v; } int x; }; }", "function set"
        )

    def test_no_double(self) -> None:
        self.expect("double x();", "Metal has no double")
        for literal in ("1.0", ".5", "1e5", "2.5e-3"):
            self.expect(f"void f() {{ float x = {literal}; }}", "a literal without f")
        self.assertEqual(complaints("void f() { float x = 1.0f + 2.f + 1e5f; half y = 1.0h; }"), "")

    def test_recursion(self) -> None:
        self.expect("int f(int n) { return n ? f(n - 1) : 0; }", "f calls itself")
        self.expect("int g(int n); int f(int n) { return g(n); } int g(int n) { return f(n); }",
                    "g calls itself")  # fmt: skip
        self.expect("struct S { int f() thread { return f(); } };", "f calls itself")

    def test_function_pointers(self) -> None:
        self.expect("void f(int (*compare)(int, int)) {}", "Metal has no function pointers")
        self.expect("typedef void (*Callback)();", "Metal has no function pointers")

    def test_variables_outside_functions(self) -> None:
        self.expect("int counter = 0;", "variable counter is not in the constant address space")
        self.expect("constexpr float kPi = 3.0f;", "variable kPi is not in the constant")
        self.expect("namespace a { const int kTable[2] = {1, 2}; }", "variable kTable is not")
        self.expect("struct S { static constexpr int kRows = 8; };", "variable kRows is not")
        self.expect("constant int kRows;", "constant kRows has no initialiser")
        self.expect("void f() { static int calls = 0; }", "a static variable in a function")

    def test_attributes(self) -> None:
        kernel = "[[kernel]] void f({}) {{}}"
        for parameters, text in (
            ("device float* o", "without a name or an attribute"),
            ("device float* o [[nonsense]]", "an unknown attribute"),
            ("device float* [[buffer(0)]] o", "stand behind the argument's name"),
            ("device float* o [[buffer(31)]]", "index 31 is above 30"),
            ("device int* a [[buffer(1)]], device int* b [[buffer(1)]]",
             "a and b have the same index 1"),
        ):  # fmt: skip
            self.expect(kernel.format(parameters), text)
        self.expect("void f(device int* a [[buffer(0)]]) [[kernel]] {}", "before the return type")
        self.expect("[[kernel]] int f(device int* a [[buffer(0)]]) {}", "a kernel must return void")

    def test_what_metal_leaves_out(self) -> None:
        for code in (
            "void f() { auto g = [](int x) { return x; }; }",
            "void f() { auto g = [&] (int x) { return x; }; }",
            "void f() { throw 1; }",
            "void f() { auto* p = new int; }",
            "struct S { virtual void f() thread; };",
            "void f() { long long x = 0; }",
            "void f() { auto [a, b] = g(); }",
            "S f() { return S{.a = 1, .b = 2}; }",
            "template <class T> concept C = true;",
            "void f() { std::max(1, 2); }",
            "#include <cstdint>\n",
        ):
            self.assertNotEqual(complaints(code), "", code)


if __name__ == "__main__":
    unittest.main()
