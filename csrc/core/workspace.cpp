#include "core/workspace.h"

#include <algorithm>
#include <new>
#include <vector>

namespace clipsight {
namespace {

constexpr std::align_val_t kLine{64};
constexpr std::size_t kFirst = 64 << 10;  // bytes of the first block
constexpr std::size_t kKept = 64 << 20;   // a thread keeps no more than this between calls

struct Block {
  char* data;
  std::size_t size, used;
};

/// Blocks are filled in order; those after `current` are empty. Once nothing is in use they become one.
struct Stack {
  std::vector<Block> blocks;
  std::size_t current = 0;

  ~Stack() { clear(); }

  void clear() {
    for (const Block& block : blocks) ::operator delete(block.data, kLine);
    blocks.clear();
    current = 0;
  }

  void* take(std::size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    for (; current < blocks.size(); ++current) {
      Block& block = blocks[current];
      if (block.size - block.used >= bytes) {
        block.used += bytes;
        return block.data + block.used - bytes;
      }
    }
    const std::size_t size = std::max({bytes, kFirst, blocks.empty() ? 0 : 2 * blocks.back().size});
    blocks.reserve(blocks.size() + 1);
    blocks.push_back({static_cast<char*>(::operator new(size, kLine)), size, bytes});
    return blocks.back().data;
  }

  void release(std::size_t block, std::size_t used) {
    for (std::size_t i = block; i < blocks.size(); ++i) blocks[i].used = i == block ? used : 0;
    current = block;
    if (block != 0 || used != 0) return;
    std::size_t total = 0;
    for (const Block& b : blocks) total += b.size;
    const bool several = blocks.size() > 1;
    if (!several && total <= kKept) return;
    clear();
    if (total > kKept) return;
    if (void* data = ::operator new(total, kLine, std::nothrow)) blocks.push_back({static_cast<char*>(data), total, 0});
  }
};

thread_local Stack stack;

}  // namespace

Workspace::Workspace()
    : block_(stack.current), used_(stack.current < stack.blocks.size() ? stack.blocks[stack.current].used : 0) {}

Workspace::~Workspace() { stack.release(block_, used_); }

void* Workspace::take(std::size_t bytes) { return stack.take(bytes); }

}  // namespace clipsight
