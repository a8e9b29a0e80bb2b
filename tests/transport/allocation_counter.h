#pragma once

#include <cstdint>

/// Calls of operator new by this thread; a program that links allocation_counter.cc counts them.
uint64_t allocations_of_this_thread();
