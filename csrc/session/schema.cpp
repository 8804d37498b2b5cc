#include "schema.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "manifest_schema.h"  // written by CMake from python/clipsight/manifest.schema.json

namespace clipsight {

namespace {

const Json& schema() {
  static const Json schema = Json::parse(kManifestSchema);
  return schema;
}

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

void check(const Json& value, const Json& rules, const std::string& path);

void check_items(const std::vector<Json>& items, const Json& rules, const std::string& path) {
  const auto count = static_cast<double>(items.size());
  const double least = bound(rules, "minItems", count), most = bound(rules, "maxItems", count);
  if (count < least) fail(path, "have at least " + to_string(least) + " items", to_string(count));
  if (count > most) fail(path, "have at most " + to_string(most) + " items", to_string(count));
  const Json* each = rules.find("items");
  for (size_t i = 0; each && i < items.size(); ++i) check(items[i], *each, path + "[" + std::to_string(i) + "]");
}

void check_members(const Json& object, const Json& rules, const std::string& path) {
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
      check(object.value(i), *member, path.empty() ? name : path + "." + name);
    } else if (others && !others->boolean()) {
      std::string names;
      for (const std::string& one : known->names()) names += (names.empty() ? "" : ", ") + one;
      fail(path, "have no member but " + names, "'" + name.substr(0, 60) + "'");
    }
  }
}

void check(const Json& value, const Json& given, const std::string& path) {
  const Json* reference = given.find("$ref");  // "#/definitions/<name>"
  const Json& rules =
      reference ? schema().at("definitions").at(reference->string().substr(14).c_str()) : given;
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
    case Json::Kind::array: check_items(value.items(), rules, path); break;
    case Json::Kind::object: check_members(value, rules, path); break;
    default: break;
  }
}

}  // namespace

void check_schema(const Json& manifest) { check(manifest, schema(), ""); }

}  // namespace clipsight
