#include "json.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace clipsight {

namespace {

constexpr int kMaxDepth = 64;  // a damaged file must not exhaust the stack

const char* name_of(Json::Kind kind) {
  constexpr const char* names[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
  return names[static_cast<int>(kind)];
}

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | code >> 12);
    out += static_cast<char>(0x80 | (code >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | code >> 18);
    out += static_cast<char>(0x80 | (code >> 12 & 0x3f));
    out += static_cast<char>(0x80 | (code >> 6 & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  }
}

}  // namespace

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) fail("nothing more");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& expected) const {
    throw std::invalid_argument("JSON must have " + expected + " at offset " + std::to_string(at_));
  }

  void skip_space() {
    at_ = std::min(text_.find_first_not_of(" \n\r\t", at_), text_.size());
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    skip_space();
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void demand(char c) {
    if (!take(c)) fail(std::string("'") + c + "'");
  }

  Json read(int depth) {
    if (depth > kMaxDepth) fail("at most " + std::to_string(kMaxDepth) + " levels");
    skip_space();
    Json value;
    switch (peek()) {
      case '{': read_object(value, depth); break;
      case '[': read_array(value, depth); break;
      case '"':
        value.kind_ = Json::Kind::string;
        value.string_ = read_string();
        break;
      default: read_word(value);
    }
    return value;
  }

  void read_object(Json& value, int depth) {
    value.kind_ = Json::Kind::object;
    demand('{');
    if (take('}')) return;
    do {
      skip_space();
      value.names_.push_back(read_string());
      demand(':');
      value.items_.push_back(read(depth + 1));
    } while (take(','));
    demand('}');
  }

  void read_array(Json& value, int depth) {
    value.kind_ = Json::Kind::array;
    demand('[');
    if (take(']')) return;
    do {
      value.items_.push_back(read(depth + 1));
    } while (take(','));
    demand(']');
  }

  std::string read_string() {
    demand('"');
    std::string out;
    while (peek() != '"') {
      if (at_ >= text_.size()) fail("the end of a string");
      const char c = text_[at_++];
      if (c == '\\') {
        read_escape(out);
      } else {
        out += c;
      }
    }
    ++at_;
    return out;
  }

  void read_escape(std::string& out) {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/': out += c; break;
      case 'b': out += '\b'; break;
      case 'f': out += '\f'; break;
      case 'n': out += '\n'; break;
      case 'r': out += '\r'; break;
      case 't': out += '\t'; break;
      case 'u': append_utf8(out, read_code()); break;
      default: --at_; fail("an escape sequence");
    }
  }

  /// A \u escape; two of them where the code lies beyond 16 bits.
  uint32_t read_code() {
    const uint32_t high = read_hex();
    if (high < 0xd800 || high > 0xdbff) return high;
    if (text_.compare(at_, 2, "\\u") != 0) fail("the second half of a surrogate pair");
    at_ += 2;
    const uint32_t low = read_hex();
    if (low < 0xdc00 || low > 0xdfff) fail("the second half of a surrogate pair");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  uint32_t read_hex() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      if (!std::isxdigit(static_cast<unsigned char>(c))) fail("four hexadecimal digits");
      value = value << 4 | static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  /// null, true, false, a number, or one of the three words that Python's json writes beyond the standard.
  void read_word(Json& value) {
    const size_t begin = at_;
    while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '-' || peek() == '+' || peek() == '.') ++at_;
    const std::string word = text_.substr(begin, at_ - begin);
    value.kind_ = Json::Kind::number;
    if (word == "null") {
      value.kind_ = Json::Kind::null;
    } else if (word == "true" || word == "false") {
      value.kind_ = Json::Kind::boolean;
      value.boolean_ = word == "true";
    } else if (word == "NaN") {
      value.number_ = std::nan("");
    } else if (word == "Infinity" || word == "-Infinity") {
      value.number_ = word[0] == '-' ? -HUGE_VAL : HUGE_VAL;
    } else {
      std::istringstream stream(word);
      stream.imbue(std::locale::classic());  // the program's locale may write a comma
      if (!(stream >> value.number_) || stream.peek() != std::char_traits<char>::eof()) {
        at_ = begin;
        fail("a value");
      }
    }
  }

  const std::string& text_;
  size_t at_ = 0;
};

Json Json::parse(const std::string& text) { return JsonReader(text).document(); }

void Json::expect(Kind kind) const {
  if (kind_ != kind) {
    throw std::invalid_argument(std::string("JSON must have ") + name_of(kind) + ", got " + name_of(kind_));
  }
}

bool Json::boolean() const {
  expect(Kind::boolean);
  return boolean_;
}

double Json::number() const {
  expect(Kind::number);
  return number_;
}

int64_t Json::integer() const {
  expect(Kind::number);
  if (!(std::abs(number_) <= 9007199254740992.0) || number_ != std::floor(number_)) {
    throw std::invalid_argument("JSON must have an integer, got " + std::to_string(number_));
  }
  return static_cast<int64_t>(number_);
}

const std::string& Json::string() const {
  expect(Kind::string);
  return string_;
}

const std::vector<Json>& Json::items() const {
  expect(Kind::array);
  return items_;
}

const std::vector<std::string>& Json::names() const {
  expect(Kind::object);
  return names_;
}

const Json* Json::find(const char* name) const {
  expect(Kind::object);
  for (size_t i = 0; i < names_.size(); ++i) {
    if (names_[i] == name) return &items_[i];
  }
  return nullptr;
}

const Json& Json::at(const char* name) const {
  if (const Json* value = find(name)) return *value;
  throw std::invalid_argument(std::string("JSON must have a member '") + name + "'");
}

}  // namespace clipsight
