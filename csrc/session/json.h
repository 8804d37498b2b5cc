// A strict reader of JSON from a file of a stranger; python/clipsight/schema.py is the same in Python.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace clipsight {

constexpr size_t kLongestManifest = 4 << 20;  // bytes
constexpr int kDeepest = 64;                  // levels of objects and arrays

/// A JSON value. The accessors throw std::invalid_argument where the value is of another kind or has no such member.
class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  /// Of a text (RFC 8259) in UTF-8. Throws std::invalid_argument where it is not JSON, too long or too deep; an object
  /// has a name twice; a number is not finite; or a text has the character NUL or half of a surrogate pair.
  static Json parse(const std::string& text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }
  bool boolean() const;
  double number() const;
  bool is_integer() const { return kind_ == Kind::number && integer_; }  // written without a fraction or an exponent
  int64_t integer() const;
  const std::string& string() const;
  const std::vector<Json>& items() const;
  const std::vector<std::string>& names() const;  // of an object's members
  const Json& value(size_t i) const { return items_.at(i); }  // of names()[i]
  const Json& at(const char* name) const;
  const Json* find(const char* name) const;  // nullptr: no such member

 private:
  friend class JsonReader;
  void expect(Kind kind) const;

  Kind kind_ = Kind::null;
  bool boolean_ = false, integer_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<Json> items_;         // of an array, or the values of an object
  std::vector<std::string> names_;  // of an object's values
};

/// Length of the character that starts here, or 0 where its bytes are not UTF-8: the shortest form, and no surrogate.
size_t utf8_length(std::string_view text, size_t at);

/// Holds a manifest against a schema. Throws std::invalid_argument: "the manifest's outputs[0].shape must have at most 8
/// items, got 9".
void check_schema(const Json& manifest, const Json& schema);

}  // namespace clipsight
