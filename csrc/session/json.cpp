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

}  // namespace

size_t utf8_length(std::string_view text, size_t at) {
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

// ---- Schemas: the keywords that manifest.schema.json has ------------------------------------------------------------

namespace {

bool is_of_type(const Json& value, const std::string& type) {
  switch (value.kind()) {
    case Json::Kind::null: return type == "null";
    case Json::Kind::boolean: return type == "boolean";
    case Json::Kind::number: return type == "number" || (type == "integer" && value.is_integer());
    case Json::Kind::string: return type == "string";
    case Json::Kind::array: return type == "array";
    case Json::Kind::object: return type == "object";
  }
  return false;
}

std::string to_string(double number) {
  const std::string text = std::to_string(number);
  return text.substr(0, text.find(".000000"));
}

[[noreturn]] void fail(const std::string& path, const std::string& rule, const std::string& got) {
  throw std::invalid_argument("the manifest" + (path.empty() ? "" : "'s " + path) + " must " + rule + ", got " + got);
}

std::string described(const Json& value) {
  switch (value.kind()) {
    case Json::Kind::boolean: return value.boolean() ? "true" : "false";
    case Json::Kind::number: return to_string(value.number());
    case Json::Kind::string: return "'" + value.string().substr(0, 60) + "'";
    case Json::Kind::array: return "an array";
    case Json::Kind::object: return "an object";
    default: return "null";
  }
}

[[noreturn]] void fail(const std::string& path, const std::string& rule, const Json& value) {
  fail(path, rule, described(value));
}

std::string joined(const Json& texts, const char* between) {
  if (texts.kind() == Json::Kind::string) return texts.string();
  std::string text;
  for (const Json& item : texts.items()) text += (text.empty() ? "" : between) + item.string();
  return text;
}

/// The bound of this name in a schema, or `value` where there is none.
double bound(const Json& schema, const char* name, double value) {
  const Json* found = schema.find(name);
  return found ? found->number() : value;
}

void check(const Json& value, const Json& rules, const Json& root, const std::string& path);

void check_items(const std::vector<Json>& items, const Json& rules, const Json& root, const std::string& path) {
  const auto count = static_cast<double>(items.size());
  const double least = bound(rules, "minItems", count), most = bound(rules, "maxItems", count);
  if (count < least) fail(path, "have at least " + to_string(least) + " items", to_string(count));
  if (count > most) fail(path, "have at most " + to_string(most) + " items", to_string(count));
  const Json* each = rules.find("items");
  for (size_t i = 0; each && i < items.size(); ++i) check(items[i], *each, root, path + "[" + std::to_string(i) + "]");
}

void check_members(const Json& object, const Json& rules, const Json& root, const std::string& path) {
  if (const Json* required = rules.find("required")) {
    for (const Json& name : required->items()) {
      if (!object.find(name.string().c_str())) fail(path, "have the member " + name.string(), object);
    }
  }
  const Json* known = rules.find("properties");
  if (!known) return;
  const Json* others = rules.find("additionalProperties");
  for (size_t i = 0; i < object.names().size(); ++i) {
    const std::string& name = object.names()[i];
    if (const Json* member = known->find(name.c_str())) {
      check(object.value(i), *member, root, path.empty() ? name : path + "." + name);
    } else if (others && !others->boolean()) {
      std::string names;
      for (const std::string& one : known->names()) names += (names.empty() ? "" : ", ") + one;
      fail(path, "have no member but " + names, "'" + name.substr(0, 60) + "'");
    }
  }
}

void check(const Json& value, const Json& given, const Json& root, const std::string& path) {
  const Json* reference = given.find("$ref");  // "#/definitions/<name>"
  const Json& rules = reference ? root.at("definitions").at(reference->string().substr(14).c_str()) : given;
  const Json& type = rules.at("type");
  const bool fits = type.kind() == Json::Kind::string
                        ? is_of_type(value, type.string())
                        : std::any_of(type.items().begin(), type.items().end(),
                                      [&](const Json& one) { return is_of_type(value, one.string()); });
  if (!fits) fail(path, "be of the type " + joined(type, " or "), value);
  if (const Json* allowed = rules.find("enum")) {  // of texts
    const auto& all = allowed->items();
    const auto same = [&](const Json& one) { return one.string() == value.string(); };
    if (std::none_of(all.begin(), all.end(), same)) fail(path, "be one of " + joined(*allowed, ", "), value);
  }
  switch (value.kind()) {
    case Json::Kind::number: {
      const double number = value.number();
      const double least = bound(rules, "minimum", number), most = bound(rules, "maximum", number);
      if (number < least) fail(path, "be at least " + to_string(least), value);
      if (number > most) fail(path, "be at most " + to_string(most), value);
      break;
    }
    case Json::Kind::string:
      if (static_cast<double>(value.string().size()) < bound(rules, "minLength", 0)) {
        fail(path, "have a character", value);
      }
      break;
    case Json::Kind::array: check_items(value.items(), rules, root, path); break;
    case Json::Kind::object: check_members(value, rules, root, path); break;
    default: break;
  }
}

}  // namespace

void check_schema(const Json& value, const Json& schema) { check(value, schema, schema, ""); }

}  // namespace clipsight
