#include "manifest_text.h"

#include <clipsight/session.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include "json.h"

namespace clipsight {

namespace {

constexpr const char* kMetadataKey = "clipsight";       // among an ONNX model's metadata_props
constexpr const char* kArchiveEntry = "/extra/clipsight.json";  // of a zip archive, in its folder
constexpr uint64_t kLongest = 64 << 20;                 // no directory of an archive is longer
constexpr int kMostFields = 100000;                     // of an ONNX model; its graph is one of them

/// A damaged file; read_manifest_text adds the path.
struct Damaged {
  std::string what;
};

class File {
 public:
  explicit File(const std::string& path) {
    std::error_code error;
    size_ = std::filesystem::file_size(path, error);  // an error for a folder; a pipe would wait to be opened
    if (!error) stream_.open(path, std::ios::binary);
    if (error || !stream_) {
      throw Error("open: path must name an exported file, got '" + path + "': " +
                  (error ? error.message() : "it could not be opened"));
    }
  }

  uint64_t size() const { return size_; }

  std::string read(uint64_t offset, uint64_t length) {
    if (offset > size_ || length > size_ - offset) {
      throw Damaged{std::to_string(length) + " bytes at offset " + std::to_string(offset) + " run past the end of " +
                    std::to_string(size_) + " bytes"};
    }
    if (length > kLongest) throw Damaged{"a record of " + std::to_string(length) + " bytes"};
    std::string bytes(length, '\0');
    stream_.seekg(static_cast<std::streamoff>(offset));
    stream_.read(bytes.data(), static_cast<std::streamsize>(length));
    if (!stream_) throw Damaged{"the file could not be read to its end"};
    return bytes;
  }

 private:
  std::ifstream stream_;
  uint64_t size_ = 0;
};

// ---- ONNX: the top-level fields of a protobuf message ---------------------------------------------------------------

struct Field {
  uint64_t number, begin, length;
};

/// Walks over the length-delimited fields of a message; `Source` has size() and read(offset, length).
template <typename Source>
class Fields {
 public:
  explicit Fields(Source& source) : source_(source) {
    if (source.size() == 0) throw Damaged{"the file is empty"};
  }

  std::optional<Field> next() {
    while (at_ < source_.size()) {
      if (++fields_ > kMostFields) throw Damaged{"more than " + std::to_string(kMostFields) + " fields"};
      const uint64_t begin = at_, tag = varint();
      if (tag >> 3 && (tag & 7) == 0) {
        varint();
      } else if (tag >> 3 && (tag & 7) == 2) {
        const uint64_t length = varint();
        const Field field{tag >> 3, at_, length};
        if (length > source_.size() - at_) {
          throw Damaged{"a field of " + std::to_string(length) + " bytes at offset " + std::to_string(at_) +
                        " runs past the end of " + std::to_string(source_.size()) + " bytes"};
        }
        at_ += length;
        return field;
      } else {
        throw Damaged{"no field of an ONNX model starts at offset " + std::to_string(begin)};
      }
    }
    return std::nullopt;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const auto byte = static_cast<unsigned char>(source_.read(at_++, 1)[0]);
      if (shift == 63 && byte > 1) break;
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw Damaged{"a number of more than 64 bits"};
  }

  Source& source_;
  uint64_t at_ = 0;
  int fields_ = 0;
};

struct Bytes {
  std::string text;
  uint64_t size() const { return text.size(); }
  std::string read(uint64_t offset, uint64_t length) const {
    if (offset > text.size() || length > text.size() - offset) throw Damaged{"an entry ends too early"};
    return text.substr(offset, length);
  }
};

/// The field of an entry, which must be there at most once.
std::string text_field(Bytes& message, uint64_t wanted) {
  std::optional<std::string> text;
  Fields<Bytes> fields(message);
  while (const auto field = fields.next()) {
    if (field->number != wanted) continue;
    if (text) throw Damaged{"an entry of the metadata with two values"};
    text = message.read(field->begin, field->length);
  }
  return text.value_or("");
}

std::optional<std::string> from_onnx(File& file) {
  std::optional<std::string> text;
  uint64_t read = 0;
  Fields<File> fields(file);
  while (const auto field = fields.next()) {
    if (field->number != 14) continue;  // ModelProto.metadata_props: StringStringEntryProto
    read += field->length;
    if (field->length > kLongestManifest + 64 || read / 4 > kLongestManifest) {
      throw Damaged{"metadata of " + std::to_string(read) + " bytes"};
    }
    Bytes entry{file.read(field->begin, field->length)};
    if (text_field(entry, 1) != kMetadataKey) continue;
    if (text) throw Damaged{"a model with 2 clipsight manifests or more"};
    text = text_field(entry, 2);
  }
  return text;
}

// ---- TorchScript and .pt2: the central directory of a zip archive ---------------------------------------------------

uint64_t number_at(const std::string& bytes, size_t offset, size_t length) {
  if (offset + length > bytes.size()) throw Damaged{"a directory entry ends too early"};
  uint64_t value = 0;
  for (size_t i = length; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[offset + i]);
  return value;
}

struct Directory {
  uint64_t offset, length;
};

Directory find_directory(File& file) {
  const uint64_t tail = std::min<uint64_t>(file.size(), 22 + 65535);  // the end record and the longest comment
  const std::string end = file.read(file.size() - tail, tail);
  const size_t at = end.rfind("PK\5\6");
  if (at == std::string::npos) throw Damaged{"it has no directory at its end"};
  Directory directory{number_at(end, at + 16, 4), number_at(end, at + 12, 4)};
  if (directory.offset != 0xffffffff && directory.length != 0xffffffff) return directory;
  if (at < 20 || end.compare(at - 20, 4, "PK\6\7") != 0) throw Damaged{"it has no zip64 directory"};
  const std::string large = file.read(number_at(end, at - 20 + 8, 8), 56);
  if (large.compare(0, 4, "PK\6\6") != 0) throw Damaged{"it has no zip64 directory"};
  return {number_at(large, 48, 8), number_at(large, 40, 8)};
}

/// Offset of the entry's local header, from the directory or its zip64 extra field.
uint64_t header_offset(const std::string& directory, size_t at, size_t name_length) {
  const uint64_t offset = number_at(directory, at + 42, 4);
  if (offset != 0xffffffff) return offset;
  const size_t begin = at + 46 + name_length, end = begin + number_at(directory, at + 30, 2);
  for (size_t extra = begin; extra + 4 <= end; extra += 4 + number_at(directory, extra + 2, 2)) {
    // This field holds only what did not fit in 32 bits: of a short entry, the offset alone.
    if (number_at(directory, extra, 2) == 1) return number_at(directory, extra + 4, 8);
  }
  throw Damaged{"a directory entry has no offset"};
}

std::string read_entry(File& file, const std::string& directory, size_t at, size_t name_length) {
  const uint64_t length = number_at(directory, at + 20, 4);
  if (number_at(directory, at + 10, 2) != 0) throw Damaged{"its manifest must be stored uncompressed"};
  if (length > kLongestManifest) throw Damaged{"a manifest of " + std::to_string(length) + " bytes"};
  const uint64_t header = header_offset(directory, at, name_length);
  const std::string local = file.read(header, 30);
  if (local.compare(0, 4, "PK\3\4") != 0) throw Damaged{"its manifest is not where the directory says"};
  if (file.read(header + 30, number_at(local, 26, 2)) != directory.substr(at + 46, name_length)) {
    throw Damaged{"its manifest has another name in the directory"};
  }
  std::string text = file.read(header + 30 + number_at(local, 26, 2) + number_at(local, 28, 2), length);
  if (crc32(text) != number_at(directory, at + 16, 4)) throw Damaged{"its manifest has a wrong checksum"};
  return text;
}

std::optional<std::string> from_archive(File& file) {
  std::optional<std::string> text;
  uint64_t first = ~uint64_t{0};
  const Directory place = find_directory(file);
  const std::string directory = file.read(place.offset, place.length), wanted = kArchiveEntry;
  for (size_t at = 0; at + 46 <= directory.size();) {
    if (directory.compare(at, 4, "PK\1\2") != 0) throw Damaged{"its directory is broken"};
    const size_t name_length = number_at(directory, at + 28, 2);
    const std::string name = "/" + directory.substr(at + 46, name_length);
    first = std::min(first, header_offset(directory, at, name_length));
    if (name.size() >= wanted.size() && name.compare(name.size() - wanted.size(), wanted.size(), wanted) == 0) {
      if (text) throw Damaged{"an archive with 2 clipsight manifests or more"};
      text = read_entry(file, directory, at, name_length);
    }
    at += 46 + name_length + number_at(directory, at + 30, 2) + number_at(directory, at + 32, 2);
  }
  if (first != 0) throw Damaged{"it does not begin with its first entry"};
  return text;
}

}  // namespace

uint32_t crc32(const std::string& bytes) {
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

std::string read_manifest_text(const std::string& path) {
  File file(path);
  bool archive = false;
  try {
    archive = file.size() >= 2 && file.read(0, 2) == "PK";
    if (auto text = archive ? from_archive(file) : from_onnx(file)) return *text;
    throw Damaged{archive ? "an archive with no clipsight manifest" : "a model with no clipsight manifest"};
  } catch (const Damaged& damaged) {
    throw Error("open: '" + path + "' must be a whole file that clipsight.export wrote, got something else or a "
                "damaged one: " + damaged.what);
  }
}

}  // namespace clipsight
