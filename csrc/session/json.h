// A reader of JSON, as small as a manifest needs.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace clipsight {

/// A JSON value. The accessors throw std::invalid_argument where the value is of another kind or has no such member.
class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  static Json parse(const std::string& text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }
  bool boolean() const;
  double number() const;
  int64_t integer() const;
  const std::string& string() const;
  const std::vector<Json>& items() const;
  const std::vector<std::string>& names() const;  // of an object's members
  const Json& at(const char* name) const;
  const Json* find(const char* name) const;  // nullptr: no such member

 private:
  friend class JsonReader;
  void expect(Kind kind) const;

  Kind kind_ = Kind::null;
  bool boolean_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<Json> items_;         // of an array, or the values of an object
  std::vector<std::string> names_;  // of an object's values
};

}  // namespace clipsight
