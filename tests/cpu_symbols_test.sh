#!/bin/sh
# SPDX-License-Identifier: MIT
# cpu_symbols_test.sh NM OBJECT...: the kernels of an instruction set define no function that the
# linker could take for another object's, compiled without that set. A weak definition is one.
set -eu
nm=$1
shift
checked=0
for object in "$@"; do
  case "$object" in
    */cpu/avx*.cpp.o | */cpu/neon*.cpp.o | */cpu/portable.cpp.o) ;;
    *) continue ;;
  esac
  checked=$((checked + 1))
  if "$nm" -C "$object" | grep ' [Wu] '; then
    echo "$object: these functions may run where their instruction set is missing" >&2
    exit 1
  fi
done
echo "$checked objects"
[ "$checked" -gt 0 ]
