// For the member functions of parameter structs: inlined everywhere, or the objects of the instruction sets would share a copy.
#pragma once

#define DGMFAST_GEOMETRY __attribute__((always_inline)) constexpr
