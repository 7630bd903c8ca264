// `pagedkv conformance` over generated cases: passing, failing, unsupported and malformed ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "conformance/case_writer.h"
#include "conformance/onnx_case.h"
#include "tools/run_tool.h"

namespace pagedkv::tool {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class Conformance : public ::testing::Test {
 protected:
  ToolRun run() { return run_captured({"conformance", folder_.path().string(), "--json", report_}); }
  void rewrite(const std::string& name, const json& meta) {
    write_bytes(folder_.path() / name / "case.json", meta.dump());
  }

  /// Writes a case whose expected output is right, and returns its case.json.
  json add_case(const std::string& name, GeneratedCase c, std::uint32_t seed = 1) {
    c.draw(seed);
    return c.write(folder_.path() / name, c.expected());
  }

  TemporaryFolder folder_;
  TemporaryFolder report_folder_;
  std::string report_ = report_folder_ / "report.json";
};

TEST_F(Conformance, PassesCasesOfEveryFeature) {
  const float hidden = -std::numeric_limits<float>::infinity();
  GeneratedCase masked{.q_len = 2, .new_len = 3, .mask = {0, -1, hidden, hidden, hidden, hidden}};
  add_case("plain", {});
  add_case("causal", {.q_len = 5, .causal = true});
  add_case("causal_from_the_left", {.q_len = 3, .new_len = 9, .causal = true});
  add_case("past", {.q_len = 4, .past_len = 13, .new_len = 4});
  add_case("causal_past", {.q_len = 4, .past_len = 33, .new_len = 4, .causal = true});
  add_case("capped", {.soft_cap = 0.5F});
  add_case("scaled", {.scale = 0.75F});
  add_case("more_queries_than_keys", {.q_len = 9, .new_len = 2});
  add_case("multi_query", {.q_heads = 6, .kv_heads = 1, .head_dim = 3, .v_dim = 1});
  add_case("masked", masked);
  const ToolRun result = run();
  EXPECT_EQ(result.code, kDone) << result.out << result.err;
  const json report = read_json(report_);
  EXPECT_EQ(report["passed"], 10);
  EXPECT_EQ(report["failed"], 0);
  EXPECT_EQ(report["unsupported"], 0);
  EXPECT_EQ(report["page_sizes"], json({1, 2, 3, 4, 16}));
  for (const json& entry : report["cases"]) EXPECT_EQ(entry["result"], "pass") << entry;
}

TEST_F(Conformance, OneWrongNumberFailsWithItsErrorAndExitCodeOne) {
  GeneratedCase c;
  c.draw(7);
  std::vector<float> y = c.expected();
  y[5] += 0.25F;
  std::ignore = c.write(folder_.path() / "wrong", y);
  add_case("right", {});
  const ToolRun result = run();
  EXPECT_EQ(result.code, kCheckFailed);
  EXPECT_THAT(result.out, HasSubstr("fail         wrong  largest error 0.25"));
  EXPECT_THAT(result.out, HasSubstr("pass         right"));
  const json report = read_json(report_);
  EXPECT_EQ(report["passed"], 1);
  EXPECT_EQ(report["failed"], 1);
  EXPECT_NEAR(report["cases"][1]["max_error"].get<double>(), 0.25, 1e-5);
}

TEST_F(Conformance, NanWhereANumberIsExpectedFails) {
  GeneratedCase c;
  c.draw(8);
  std::vector<float> y = c.expected();
  y[0] = std::numeric_limits<float>::quiet_NaN();
  std::ignore = c.write(folder_.path() / "nan", y);
  EXPECT_EQ(run().code, kCheckFailed);
  EXPECT_EQ(read_json(report_)["cases"][0]["max_error"], "inf");
}

TEST_F(Conformance, WrongPresentRowsFailEvenByTheLastBit) {
  GeneratedCase c{.past_len = 6};
  c.draw(9);
  std::ignore = c.write(folder_.path() / "copy", c.expected());
  std::vector<float> rows = c.present(true);
  rows.back() = std::nextafter(rows.back(), 2.0F);
  write_npy(folder_.path() / "copy" / "present_value.npy", "<f4", {c.batch, c.kv_heads, c.total_len(), c.v_dim}, rows);
  const ToolRun result = run();
  EXPECT_EQ(result.code, kCheckFailed);
  EXPECT_THAT(result.out, HasSubstr("present_value"));
}

TEST_F(Conformance, UnsupportedCasesAreCountedAndSayWhy) {
  json meta = add_case("odd_attribute", {});
  meta["attributes"]["rotary"] = 1;
  rewrite("odd_attribute", meta);
  meta = add_case("other_operator", {});
  meta["op"] = "MatMul";
  rewrite("other_operator", meta);
  meta = add_case("zero_scale", {});
  meta["attributes"]["scale"] = 0;
  rewrite("zero_scale", meta);
  const ToolRun result = run();
  EXPECT_EQ(result.code, kCheckFailed) << "nothing has passed";
  EXPECT_THAT(result.out, HasSubstr("unsupported  odd_attribute  unknown entry 'rotary' in attributes"));
  const json report = read_json(report_);
  EXPECT_EQ(report["unsupported"], 3);
  EXPECT_THAT(report["cases"][1]["reason"].get<std::string>(), HasSubstr("MatMul"));
  add_case("plain", {});
  EXPECT_EQ(run().code, kDone);
}

TEST_F(Conformance, ChoosesPageSizesAndTargets) {
  add_case("plain", {});
  const ToolRun result =
      run_captured({"conformance", folder_.path().string(), "--page-sizes", "5,256", "--target", "scalar"});
  EXPECT_EQ(result.code, kDone) << result.err;
  EXPECT_THAT(result.out, HasSubstr("page sizes 5 256, target scalar"));
  expect_bad_input(run_captured({"conformance", folder_.path().string(), "--page-sizes", "0"}), "--page-sizes");
  expect_bad_input(run_captured({"conformance", folder_.path().string(), "--target", "vax"}), "target");
}

TEST_F(Conformance, FoldersWithoutCasesAreBadInput) {
  expect_bad_input(run(), "holds no cases");
  expect_bad_input(run_captured({"conformance", folder_ / "missing"}), "not a folder");
  expect_bad_input(run_captured({"conformance"}), "DIR");
}

TEST_F(Conformance, CaseThatTheIndexListsMustBeThere) {
  add_case("cases/here", {});
  write_bytes(folder_ / "index.json", R"([{"case": "here"}])");
  EXPECT_EQ(run().code, kDone);
  write_bytes(folder_ / "index.json", R"([{"case": "here"}, {"case": "gone"}])");
  expect_bad_input(run(), "gone");
  write_bytes(folder_ / "index.json", R"({"case": "here"})");
  expect_bad_input(run(), "index.json: not a list");
}

TEST_F(Conformance, MalformedCasesAreBadInputSaidInOneLine) {
  const json good = add_case("spoiled", {.past_len = 2});
  const auto expect_refused = [&](const json& meta, const std::string& part) {
    rewrite("spoiled", meta);
    expect_bad_input(run(), part);
  };
  write_bytes(folder_.path() / "spoiled" / "case.json", "{\"op\": \"Attention\",\n");
  expect_bad_input(run(), "case.json");
  expect_refused(json::array(), "not an object");
  json meta = good;
  meta["attributes"]["softcap"] = -1;  // the library refuses it
  expect_refused(meta, "spoiled: page size 1: ");
  meta = good;
  meta.erase("inputs");
  expect_refused(meta, "'inputs'");
  meta = good;
  meta["inputs"].erase("Q");
  expect_refused(meta, "no Q");
  meta = good;
  meta["inputs"]["Q"]["file"] = "../elsewhere/Q.npy";
  expect_refused(meta, "outside");
  meta = good;
  meta["inputs"]["Q"]["file"] = 7;
  expect_refused(meta, "no file");
  meta = good;
  meta["inputs"].erase("past_value");
  expect_refused(meta, "past_value is missing");
  meta = good;
  meta["attributes"]["is_causal"] = "yes";
  expect_refused(meta, "'is_causal'");
  meta = good;
  meta["inputs"]["V"]["file"] = "Y.npy";
  expect_refused(meta, "V does not match K");
  meta = good;
  meta["inputs"]["attn_mask"] = {{"file", "Q.npy"}};
  expect_refused(meta, "attn_mask");
  meta = good;
  meta["inputs"]["nonpad_kv_seqlen"] = {{"file", "Q.npy"}};
  meta["outputs"] = {{"Y", {{"file", "Y.npy"}}}};
  expect_refused(meta, "nonpad_kv_seqlen");
  write_bytes(folder_.path() / "spoiled" / "K.npy", "short");
  expect_refused(good, "K.npy: not a .npy file");
}

TEST(OnnxCase, HalfPrecisionNumbersKeepTheirValue) {
  const auto value = [](DType dtype, std::uint16_t bits) {
    return to_float(dtype, reinterpret_cast<std::byte*>(&bits));
  };
  EXPECT_EQ(value(DType::f16, 0x3C00), 1);
  EXPECT_EQ(value(DType::f16, 0xC100), -2.5F);
  EXPECT_EQ(value(DType::f16, 0x0001), std::ldexp(1.0F, -24));
  EXPECT_EQ(value(DType::f16, 0x7BFF), 65504);
  EXPECT_EQ(value(DType::f16, 0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(value(DType::f16, 0x7E00)));
  EXPECT_EQ(value(DType::bf16, 0x3F80), 1);
  EXPECT_EQ(value(DType::bf16, 0xC020), -2.5F);
}

}  // namespace
}  // namespace pagedkv::tool
