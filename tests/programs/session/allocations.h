// Counts the allocations that libclipsight.so makes: those whose nearest caller outside of the allocators lies in it.
#pragma once

/// Starts counting in this thread, or stops and returns how many there were.
void count_allocations();
int counted_allocations();
