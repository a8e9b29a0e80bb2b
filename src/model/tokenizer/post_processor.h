#pragma once

#include <cstdint>
#include <vector>

#include "json_place.h"
#include "volley/base/status.h"

namespace volley::model {

/// The file's "post_processor": the special tokens around a text. Types: Sequence,
/// TemplateProcessing (its `single` template), ByteLevel (which moves offsets only, so nothing
/// here).
class PostProcessor {
 public:
  /// Without templates it adds nothing.
  PostProcessor() = default;
  static Result<PostProcessor> parse(const JsonPlace& place);

  void add_special_tokens(std::vector<int32_t>& ids) const;
  /// Every id that a template can add.
  std::vector<int32_t> template_ids() const;

 private:
  struct Template {
    std::vector<int32_t> before;
    std::vector<int32_t> after;
  };
  Status parse_into(const JsonPlace& place, uint32_t depth);
  Status parse_template(const JsonPlace& place);

  std::vector<Template> templates_;  // Applied in order, each around the result so far.
};

}  // namespace volley::model
