// The bits of one type as another of the same size.
#pragma once

#include <cstring>

namespace simt {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "no bit is lost or made up");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace simt
