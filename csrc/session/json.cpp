#include "json.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <unordered_set>

namespace clipsight {

namespace {

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

/// Length of the character that starts here, or 0 where its bytes are not UTF-8: the shortest form, and no surrogate.
size_t utf8_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : 4;
  if (first < 0xc2 || first > 0xf4) return 0;
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
  if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  return length;
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
    skip_space();
    Json value;
    if (depth == kDeepest && (peek() == '{' || peek() == '[')) fail("at most " + std::to_string(kDeepest) + " levels");
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
    std::unordered_set<std::string> seen;
    do {
      skip_space();
      value.names_.push_back(read_string());
      if (!seen.insert(value.names_.back()).second) {
        fail("each member of an object once, got '" + value.names_.back().substr(0, 40) + "' again");
      }
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
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c < 0x20) fail("no control character in a text");
      if (c == '\\') {
        ++at_;
        read_escape(out);
        continue;
      }
      const size_t length = utf8_length(text_, at_);
      if (length == 0) fail("UTF-8");
      out.append(text_, at_, length);
      at_ += length;
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
    if (high == 0) fail("texts without the character NUL");
    if (high < 0xd800 || high > 0xdfff) return high;
    const bool pair = high < 0xdc00 && text_.compare(at_, 2, "\\u") == 0;
    at_ += 2;
    const uint32_t low = pair ? read_hex() : 0;
    if (low < 0xdc00 || low > 0xdfff) fail("both halves of a surrogate pair");
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

  /// null, true, false or a number.
  void read_word(Json& value) {
    const size_t begin = at_;
    while (std::isalnum(static_cast<unsigned char>(peek())) || peek() == '-' || peek() == '+' || peek() == '.') ++at_;
    const std::string word = text_.substr(begin, at_ - begin);
    if (word == "null") return;
    if (word == "true" || word == "false") {
      value.kind_ = Json::Kind::boolean;
      value.boolean_ = word == "true";
      return;
    }
    at_ = begin;
    value.kind_ = Json::Kind::number;
    value.integer_ = check_number(word);
    std::istringstream stream(word);
    stream.imbue(std::locale::classic());  // the program's locale may write a comma
    if (!(stream >> value.number_) || !std::isfinite(value.number_)) fail("finite numbers");
    at_ += word.size();
  }

  /// Throws where a word is no number of JSON; whether it has neither a fraction nor an exponent.
  bool check_number(const std::string& word) const {
    size_t i = word[0] == '-';
    const auto digits = [&] {
      const size_t begin = i;
      while (i < word.size() && word[i] >= '0' && word[i] <= '9') ++i;
      return i - begin;
    };
    const bool zero = i < word.size() && word[i] == '0';
    const size_t whole = digits();
    bool good = whole == 1 || (whole > 1 && !zero);
    bool integer = true;
    if (i < word.size() && word[i] == '.') {
      ++i;
      integer = false;
      good = good && digits();
    }
    if (i < word.size() && (word[i] == 'e' || word[i] == 'E')) {
      ++i;
      integer = false;
      if (i < word.size() && (word[i] == '-' || word[i] == '+')) ++i;
      good = good && digits();
    }
    if (!good || i != word.size()) fail("a value");
    return integer;
  }

  const std::string& text_;
  size_t at_ = 0;
};

Json Json::parse(const std::string& text) {
  if (text.size() > kLongestManifest) {
    throw std::invalid_argument("JSON must have at most " + std::to_string(kLongestManifest) + " bytes, got " +
                                std::to_string(text.size()));
  }
  return JsonReader(text).document();
}

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
  if (!integer_ || !(std::abs(number_) <= 9007199254740991.0)) {
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
