// The .npy reader: what it accepts, and one clear line for everything that is not what it claims to be.
#include "conformance/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "conformance/case_writer.h"
#include "tools/run_tool.h"

namespace pagedkv::tool {
namespace {

using ::testing::HasSubstr;

class Npy : public ::testing::Test {
 protected:
  /// The message with which the bytes are refused; "" if they are accepted.
  std::string refusal(const std::string& bytes) {
    write_bytes(file_, bytes);
    try {
      read_npy(file_);
    } catch (const BadInput& error) {
      return error.what();
    }
    return "";
  }

  TemporaryFolder folder_;
  std::string file_ = folder_ / "array.npy";
};

TEST_F(Npy, ReadsShapeTypeAndElements) {
  write_npy<float>(file_, "<f4", {2, 3}, {1, 2, 3, 4, 5, 6});
  const NpyArray array = read_npy(file_);
  EXPECT_EQ(array.type, NpyType::f32);
  EXPECT_EQ(array.shape, (Shape{2, 3}));
  ASSERT_EQ(array.num_elements(), 6U);
  float last = 0;
  std::memcpy(&last, array.bytes.data() + 20, sizeof last);
  EXPECT_EQ(last, 6);
}

TEST_F(Npy, ReadsEveryTypeThatCasesUse) {
  for (const auto& [descr, bytes] :
       std::vector<std::pair<std::string, std::size_t>>{{"<f4", 4}, {"<f2", 2}, {"<u2", 2}, {"<i8", 8}, {"|b1", 1}}) {
    EXPECT_EQ(refusal(npy_header(descr, {3}) + std::string(3 * bytes, '\1')), "") << descr;
  }
}

TEST_F(Npy, ReadsScalarsAndEmptyArrays) {
  EXPECT_EQ(refusal(npy_header("<f4", {}) + std::string(4, '\0')), "");
  EXPECT_EQ(refusal(npy_header("<f4", {3, 0, 5})), "");
}

TEST_F(Npy, RefusesEveryTruncation) {
  const std::string whole = npy_header("<f4", {2, 2}) + std::string(16, '\0');
  for (std::size_t length = 0; length < whole.size(); ++length) {
    EXPECT_THAT(refusal(whole.substr(0, length)), HasSubstr("array.npy: ")) << length;
  }
  EXPECT_THAT(refusal(whole + "x"), HasSubstr("its shape needs 16"));
}

TEST_F(Npy, RefusesSizesThatOverflowWithoutAllocating) {
  const std::int64_t huge = std::int64_t{1} << 62;
  EXPECT_THAT(refusal(npy_header("<f4", {huge, huge, huge})), HasSubstr("overflows"));
  EXPECT_THAT(refusal(npy_header("<f4", {huge / 4})), HasSubstr("its shape needs"));
  EXPECT_THAT(refusal(npy_header("<f4", {-1})), HasSubstr("malformed"));
  EXPECT_THAT(refusal(npy_header("<f4", Shape(9, 1)) + std::string(4, '\0')), HasSubstr("malformed"));
}

TEST_F(Npy, RefusesForeignTypesOrdersAndVersions) {
  EXPECT_THAT(refusal(npy_header(">f4", {1}) + "1234"), HasSubstr("'>f4'"));
  EXPECT_THAT(refusal(npy_header("|O", {1}) + "12345678"), HasSubstr("'|O'"));
  EXPECT_THAT(refusal(npy_header("<f4", {2, 2}, "True") + std::string(16, '\0')), HasSubstr("C order"));
  std::string version9 = npy_header("<f4", {1}) + "1234";
  version9[6] = '\x09';
  EXPECT_THAT(refusal(version9), HasSubstr("version"));
}

TEST_F(Npy, RefusesHeadersThatAreNoDictionary) {
  const std::string good = npy_header("<f4", {1}) + "1234";
  for (const char* broken : {"{", "}", "'descr'", "False", "(", ")"}) {
    std::string bytes = good;
    const std::size_t at = bytes.find(broken);
    ASSERT_NE(at, std::string::npos);
    bytes[at] = '#';
    EXPECT_THAT(refusal(bytes), HasSubstr("malformed")) << broken;
  }
}

TEST_F(Npy, RefusesMissingFilesAndFolders) {
  EXPECT_THROW(read_npy(folder_ / "missing.npy"), BadInput);
  EXPECT_THROW(read_npy(folder_.path()), BadInput);
}

}  // namespace
}  // namespace pagedkv::tool
