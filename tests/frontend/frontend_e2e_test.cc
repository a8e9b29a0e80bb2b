// Goal: the public API gives text, statuses and usage as its contract says, whatever clients and
// attention nodes do, and nothing is left behind. Method: a FrontendServer on 127.0.0.1 with
// scripted attention nodes behind it; views are fed by hand. A node dies through a relay that
// resets its connections.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <thread>

#include "frontend/fake_attention_node.h"
#include "frontend/relay.h"
#include "frontend/test_model.h"
#include "volley/base/clock.h"
#include "volley/base/random.h"
#include "volley/frontend/frontend_server.h"
#include "volley/v1/inference.grpc.pb.h"

namespace volley::frontend {
namespace {

using ::testing::HasSubstr;

bool eventually(const std::function<bool()>& condition, Nanos timeout = 10 * kSecond) {
  const Nanos deadline = monotonic_now() + timeout;
  while (!condition()) {
    if (monotonic_now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

v1::GenerateRequest text_request(const std::string& text = "hello") {
  v1::GenerateRequest request;
  request.set_text(text);
  return request;
}

struct StreamResult {
  std::vector<v1::GenerateChunk> chunks;
  grpc::Status status;
  std::string text;
  std::vector<int32_t> ids;
};

class FrontendTest : public ::testing::Test {
 protected:
  void start(FrontendOptions options = {}, bool reflection = true) {
    server_.reset();
    inference_ = std::make_unique<InferenceService>(options, test_model(), GenerationDefaults{},
                                                    std::shared_ptr(test_tokenizer()));
    FrontendServerOptions server{
        .listen = {"127.0.0.1:0"}, .security = {}, .reflection = reflection};
    auto started = FrontendServer::start(server, *inference_, {});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    channel_ = *control::make_channel({}, server_->addresses()[0]);
    stub_ = v1::Inference::NewStub(channel_);
  }
  void TearDown() override {
    if (server_ == nullptr) return;
    EXPECT_TRUE(eventually([&] { return inference_->stats().in_flight == 0; }));
    EXPECT_TRUE(inference_->wait_idle(5 * kSecond));
    server_->stop();
  }

  void set_nodes(const std::vector<std::pair<std::string, int>>& nodes) {
    v1::ClusterView view;
    for (const auto& [name, port] : nodes) {
      v1::ClusterMember& member = *view.add_members();
      member.mutable_registration()->set_role(v1::ROLE_ATTENTION);
      member.mutable_registration()->set_name(name);
      member.mutable_registration()->set_incarnation(static_cast<uint64_t>(port));
      member.mutable_registration()->set_numerics_fingerprint("avx2");
      member.mutable_registration()->set_grpc_address("127.0.0.1:" + std::to_string(port));
      member.mutable_health()->set_ready(true);
      member.mutable_health()->set_kv_blocks_free(1000);
      member.mutable_health()->set_kv_blocks_total(1000);
    }
    view.set_serving(!nodes.empty());
    if (nodes.empty()) view.set_reason("expert 3 has no holder");
    inference_->update_view(view);
  }

  static void set_deadline(grpc::ClientContext& context, Nanos timeout = 20 * kSecond) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::nanoseconds(timeout));
  }

  StreamResult stream(const v1::GenerateRequest& request, Nanos timeout = 20 * kSecond) {
    grpc::ClientContext context;
    set_deadline(context, timeout);
    auto reader = stub_->GenerateStream(&context, request);
    StreamResult result;
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
      result.text += chunk.text();
      result.ids.insert(result.ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
      result.chunks.push_back(chunk);
    }
    result.status = reader->Finish();
    return result;
  }

  // Calls a method whose messages this project does not have.
  std::pair<grpc::Status, std::string> raw_call(const std::string& method,
                                                const std::string& request) {
    grpc::GenericStub generic(channel_);
    grpc::ClientContext context;
    set_deadline(context);
    const grpc::Slice slice(request);
    const grpc::ByteBuffer sent(&slice, 1);
    grpc::ByteBuffer received;
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<grpc::Status> status;
    generic.UnaryCall(&context, method, {}, &sent, &received, [&](const grpc::Status& result) {
      const std::lock_guard lock(mutex);
      status = result;
      changed.notify_one();
    });
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return status.has_value(); });
    grpc::Slice answer;
    if (status->ok()) {
      EXPECT_TRUE(received.DumpToSingleSlice(&answer).ok());
    }
    return {*status, std::string(answer.begin(), answer.end())};
  }

  // grpc.health.v1: field 1 is the service in the request and the state in the answer.
  int health(const std::string& service) {
    std::string request;
    if (!service.empty())
      request = std::string("\x0a") + static_cast<char>(service.size()) + service;
    const auto [status, answer] = raw_call("/grpc.health.v1.Health/Check", request);
    if (!status.ok()) return -static_cast<int>(status.error_code());
    return answer.size() == 2 ? answer[1] : 0;
  }

  std::unique_ptr<InferenceService> inference_;
  std::unique_ptr<FrontendServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(FrontendTest, StreamsTextThatNeverSplitsACharacter) {
  const std::string text =
      "a\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82!";  // a é € and a smile, byte by byte.
  FakeAttentionNode node([&](const auto&) { return say(text); });
  start();
  set_nodes({{"a0", node.port()}});
  v1::GenerateRequest request = text_request("hi");
  request.mutable_sampling()->set_seed(42);
  request.set_return_logits_digests(true);
  const StreamResult result = stream(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.text, text);
  ASSERT_EQ(result.ids.size(), text.size() + 1);
  EXPECT_EQ(result.ids.back(), kTestEos);
  for (const auto& chunk : result.chunks) {
    // Every chunk starts with the first byte of a character, or is empty.
    if (!chunk.text().empty()) {
      EXPECT_NE(static_cast<uint8_t>(chunk.text()[0]) & 0xc0, 0x80);
    }
    EXPECT_EQ(chunk.logits_digests_size(), chunk.token_ids_size());
    EXPECT_EQ(chunk.logprobs_size(), 0);
  }
  EXPECT_EQ(result.chunks.front().seed(), 42u);
  EXPECT_EQ(result.chunks.front().attention_node(), "a0");
  EXPECT_EQ(result.chunks.back().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(result.chunks.back().usage().prompt_tokens(), 2u);
  EXPECT_EQ(result.chunks.back().usage().completion_tokens(), text.size() + 1);
  EXPECT_EQ(node.last_request().seed(), 42u);
}

TEST_F(FrontendTest, UnaryGivesTheSameAtOnce) {
  FakeAttentionNode node([&](const auto&) { return say("h\xc3\xa9", v1::FINISH_REASON_LENGTH); });
  start();
  set_nodes({{"a0", node.port()}});
  v1::GenerateRequest request = text_request();
  request.set_return_logprobs(true);
  grpc::ClientContext context;
  set_deadline(context);
  v1::GenerateResponse response;
  const grpc::Status status = stub_->Generate(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.text(), "h\xc3\xa9");
  EXPECT_EQ(response.token_ids_size(), 3);
  EXPECT_EQ(response.logprobs_size(), 3);
  EXPECT_EQ(response.logits_digests_size(), 0);
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.usage().completion_tokens(), 3u);
  EXPECT_EQ(response.seed(), node.last_request().seed());
  EXPECT_EQ(response.attention_node(), "a0");
}

TEST_F(FrontendTest, ACharacterThatTheEndCutsIsReplaced) {
  FakeAttentionNode node([&](const auto&) { return say("x\xe2\x82", v1::FINISH_REASON_LENGTH); });
  start();
  set_nodes({{"a0", node.port()}});
  EXPECT_EQ(stream(text_request()).text, "x\xef\xbf\xbd");
}

TEST_F(FrontendTest, InvalidRequestsAreRefusedByBothCalls) {
  start();
  v1::GenerateRequest request = text_request();
  request.mutable_sampling()->set_top_p(2);
  const StreamResult result = stream(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(result.status.error_message(), "sampling.top_p: 2; allowed is (0, 1]");
  grpc::ClientContext context;
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&context, request, &response).error_message(),
            "sampling.top_p: 2; allowed is (0, 1]");
  EXPECT_EQ(inference_->stats().refused, 2u);
}

TEST_F(FrontendTest, TokenizeDetokenizeAndModel) {
  FakeAttentionNode node([&](const auto&) { return say("x"); });
  start();
  set_nodes({{"a0", node.port()}});
  v1::TokenizeRequest tokenize;
  tokenize.set_text("h\xc3\xa9");
  v1::TokenizeResponse ids;
  grpc::ClientContext first;
  ASSERT_TRUE(stub_->Tokenize(&first, tokenize, &ids).ok());
  EXPECT_THAT(ids.token_ids(), ::testing::ElementsAre('h', 0xc3, 0xa9));
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = ids.token_ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext second;
  ASSERT_TRUE(stub_->Detokenize(&second, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "h\xc3\xa9");
  detokenize.add_token_ids(5000);
  grpc::ClientContext third;
  EXPECT_THAT(stub_->Detokenize(&third, detokenize, &text).error_message(),
              HasSubstr("token_ids[3]: 5000 is no token"));
  v1::GetModelResponse model;
  grpc::ClientContext fourth;
  ASSERT_TRUE(stub_->GetModel(&fourth, {}, &model).ok());
  EXPECT_EQ(model.vocab_size(), 300u);
  EXPECT_EQ(model.numerics_fingerprint(), "avx2");
}

TEST_F(FrontendTest, WithoutANodeTheAnswerIsTheControllersReasonAtOnce) {
  start();
  EXPECT_THAT(stream(text_request()).status.error_message(),
              HasSubstr("no view of the cluster yet"));
  set_nodes({});
  const Nanos begin = monotonic_now();
  const StreamResult result = stream(text_request());
  EXPECT_LT(monotonic_now() - begin, kSecond);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(result.status.error_message(), "no node can serve: expert 3 has no holder");
}

TEST_F(FrontendTest, ACancelReachesTheNodeAndFreesEverything) {
  FakeAttentionNode node([&](const auto&) { return say_and_hang("abc"); });
  start();
  set_nodes({{"a0", node.port()}});
  grpc::ClientContext context;
  set_deadline(context);
  auto reader = stub_->GenerateStream(&context, text_request());
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(inference_->stats().in_flight, 1u);
  context.TryCancel();
  EXPECT_TRUE(
      eventually([&] { return node.runs_cancelled() == 1 && node.runs_active() == 0; }, kSecond));
  EXPECT_TRUE(eventually([&] { return inference_->stats().in_flight == 0; }, kSecond));
  while (reader->Read(&chunk)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(FrontendTest, DeadlinesOfTheCallerAndOfTheServer) {
  FakeAttentionNode node([&](const auto&) { return say_and_hang("abc"); });
  FrontendOptions options;
  options.default_deadline = kSecond;
  start(options);
  set_nodes({{"a0", node.port()}});
  for (const Nanos timeout : {500 * kMillisecond, 20 * kSecond}) {
    const StreamResult result = stream(text_request(), timeout);
    EXPECT_EQ(result.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_EQ(result.text, "abc");
  }
  EXPECT_TRUE(eventually([&] { return node.runs_active() == 0; }, kSecond));
}

TEST_F(FrontendTest, AFullQueueRefusesWithAHintAndWaitersObeyDeadlineAndCancel) {
  FakeAttentionNode node([&](const auto&) { return say_and_hang("x"); });
  FrontendOptions options;
  options.in_flight_max = 1;
  options.queue_max = 2;
  start(options);
  set_nodes({{"a0", node.port()}});
  grpc::ClientContext running;
  auto reader = stub_->GenerateStream(&running, text_request());
  v1::GenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));

  grpc::ClientContext waiting;
  auto waiter = stub_->GenerateStream(&waiting, text_request());
  grpc::ClientContext leaving;
  auto leaver = stub_->GenerateStream(&leaving, text_request());
  ASSERT_TRUE(eventually([&] { return inference_->stats().waiting == 2; }));

  grpc::ClientContext context;
  auto refused = stub_->GenerateStream(&context, text_request());
  EXPECT_FALSE(refused->Read(&chunk));
  const grpc::Status status = refused->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "the queue is full: 1 requests run and 2 wait");
  EXPECT_EQ(context.GetServerTrailingMetadata().count("retry-after-ms"), 1u);

  leaving.TryCancel();
  EXPECT_EQ(leaver->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(eventually([&] { return inference_->stats().waiting == 1; }, kSecond));
  EXPECT_EQ(stream(text_request(), 100 * kMillisecond).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(eventually([&] { return inference_->stats().waiting == 1; }, kSecond));

  running.TryCancel();  // Makes room for the one that still waits.
  ASSERT_TRUE(waiter->Read(&chunk));
  EXPECT_EQ(node.runs(), 2);
  waiting.TryCancel();
  while (reader->Read(&chunk) || waiter->Read(&chunk)) {
  }
  reader->Finish();
  waiter->Finish();
}

TEST_F(FrontendTest, TheDeathOfANodeEndsItsStreamsWithinASecondAndOthersAreUsed) {
  FakeAttentionNode node([&](const auto&) { return say_and_hang("abc"); });
  Relay relay(node.port());
  start();
  set_nodes({{"a0", relay.port()}});
  grpc::ClientContext context;
  set_deadline(context);
  auto reader = stub_->GenerateStream(&context, text_request());
  v1::GenerateChunk chunk;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&chunk));
  const Nanos begin = monotonic_now();
  relay.cut();
  EXPECT_FALSE(reader->Read(&chunk));
  const grpc::Status status = reader->Finish();
  EXPECT_LT(monotonic_now() - begin, kSecond);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("attention node a0 at 127.0.0.1:"));

  FakeAttentionNode other([&](const auto&) { return say("y"); });
  set_nodes({{"a0", relay.port()}, {"a1", other.port()}});
  EXPECT_EQ(stream(text_request()).text, "y");
}

TEST_F(FrontendTest, ANodeThatLeavesTheClusterEndsItsStreams) {
  FakeAttentionNode node([&](const auto&) { return say_and_hang("abc"); });
  start();
  set_nodes({{"a0", node.port()}});
  grpc::ClientContext context;
  set_deadline(context);
  auto reader = stub_->GenerateStream(&context, text_request());
  v1::GenerateChunk chunk;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&chunk));
  set_nodes({});
  EXPECT_FALSE(reader->Read(&chunk));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("attention node a0"));
  EXPECT_THAT(status.error_message(), HasSubstr("has left the cluster"));
}

TEST_F(FrontendTest, StatusesOfTheNodeKeepTheirCodeAndNameTheNode) {
  Status end;
  bool with_reason = false;
  FakeAttentionNode node([&](const auto&) {
    FakeAttentionNode::Script script =
        say("x", with_reason ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_UNSPECIFIED);
    script.end = end;
    return script;
  });
  start();
  set_nodes({{"a0", node.port()}});
  end = internal_error("layer 3: a logit is not finite");
  StreamResult result = stream(text_request());
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(result.status.error_message(), HasSubstr("attention node a0"));
  EXPECT_THAT(result.status.error_message(), HasSubstr("layer 3: a logit is not finite"));
  EXPECT_EQ(result.text, "x");
  end = ok_status();
  result = stream(text_request());
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(result.status.error_message(), HasSubstr("without a finish reason"));
  end = Status(StatusCode::kCancelled, "stopping");
  result = stream(text_request());
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(FrontendTest, ASlowClientHoldsTheNodeBackInsteadOfFillingMemory) {
  FakeAttentionNode::Script script;
  constexpr int kChunks = 4000;
  for (int i = 0; i < kChunks; ++i) {
    // Large chunks, so that the windows of HTTP/2 fill soon.
    v1::RunChunk& chunk = script.chunks.emplace_back();
    for (int j = 0; j < 1000; ++j) chunk.add_token_ids('a');
  }
  script.chunks.back().set_finish_reason(v1::FINISH_REASON_LENGTH);
  FakeAttentionNode node([&](const auto&) { return script; });
  FrontendOptions options;
  options.chunks_waiting_max = 4;
  start(options);
  set_nodes({{"a0", node.port()}});
  grpc::ClientContext context;
  set_deadline(context);
  auto reader = stub_->GenerateStream(&context, text_request());
  // The node stands still long before its end while nobody reads.
  int before = -1;
  ASSERT_TRUE(eventually([&] {
    const int now = node.chunks_written();
    const bool still = now > 0 && now == std::exchange(before, now);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    return still;
  }));
  EXPECT_LT(node.chunks_written(), kChunks / 2);
  v1::GenerateChunk chunk;
  size_t tokens = 0;
  while (reader->Read(&chunk)) tokens += static_cast<size_t>(chunk.token_ids_size());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, kChunks * 1000u);
}

TEST_F(FrontendTest, TwoNodesShareTheWork) {
  FakeAttentionNode first([&](const auto&) { return say_and_hang("a"); });
  FakeAttentionNode second([&](const auto&) { return say_and_hang("b"); });
  start();
  set_nodes({{"a0", first.port()}, {"a1", second.port()}});
  constexpr int kStreams = 20;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>> readers;
  for (int i = 0; i < kStreams; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub_->GenerateStream(contexts.back().get(), text_request()));
  }
  EXPECT_TRUE(eventually([&] { return first.runs() + second.runs() == kStreams; }));
  EXPECT_EQ(first.runs(), kStreams / 2);
  for (int i = 0; i < kStreams; ++i) {
    contexts[static_cast<size_t>(i)]->TryCancel();
    readers[static_cast<size_t>(i)]->Finish();
  }
}

TEST_F(FrontendTest, NothingIsLeftAfterRandomOutcomes) {
  constexpr uint64_t kRequests = 200;
  FakeAttentionNode node([&](const v1::RunRequest& request) {
    SplitMix64 random(request.seed());
    FakeAttentionNode::Script script = say(std::string(1 + random.below(6), 'x'));
    script.pause = static_cast<Nanos>(random.below(3)) * kMillisecond;
    switch (random.below(4)) {
      case 0:
        script.hang = true;
        [[fallthrough]];
      case 1:
        script.chunks.back().clear_finish_reason();
        script.end = unavailable("by chance");
        break;
      default:
        break;
    }
    return script;
  });
  FrontendOptions options;
  options.in_flight_max = 3;
  options.queue_max = 2;
  start(options);
  set_nodes({{"a0", node.port()}});
  std::vector<std::thread> clients;
  for (uint64_t client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      SplitMix64 random(client);
      for (uint64_t i = 0; i < kRequests / 8; ++i) {
        v1::GenerateRequest request = text_request();
        request.mutable_sampling()->set_seed(random.next());
        grpc::ClientContext context;
        set_deadline(context, static_cast<Nanos>(5 + random.below(200)) * kMillisecond);
        if (random.chance(0.3)) {
          v1::GenerateResponse response;
          stub_->Generate(&context, request, &response);
          continue;
        }
        auto reader = stub_->GenerateStream(&context, request);
        v1::GenerateChunk chunk;
        const uint64_t reads = random.below(8);
        for (uint64_t read = 0; read < reads && reader->Read(&chunk); ++read) {
        }
        if (random.chance(0.5)) context.TryCancel();
        while (reader->Read(&chunk)) {
        }
        reader->Finish();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(inference_->wait_idle(5 * kSecond));
  EXPECT_EQ(inference_->stats().in_flight, 0u);
  EXPECT_EQ(inference_->stats().waiting, 0u);
  EXPECT_TRUE(eventually([&] { return node.runs_active() == 0; }, 5 * kSecond));
  EXPECT_GT(inference_->stats().failed, 0u);
  EXPECT_GT(inference_->stats().succeeded, 0u);
}

TEST_F(FrontendTest, HealthFollowsWhetherARequestCouldBeServed) {
  constexpr int kServing = 1;
  constexpr int kNotServing = 2;
  FakeAttentionNode node([&](const auto&) { return say("x"); });
  start();
  EXPECT_EQ(health("liveness"), kServing);
  for (const char* service : {"", "volley.v1.Inference"}) EXPECT_EQ(health(service), kNotServing);
  set_nodes({{"a0", node.port()}});
  for (const char* service : {"", "volley.v1.Inference"}) EXPECT_EQ(health(service), kServing);
  set_nodes({});
  for (const char* service : {"", "volley.v1.Inference"}) EXPECT_EQ(health(service), kNotServing);
  EXPECT_EQ(health("unknown"), -static_cast<int>(grpc::StatusCode::NOT_FOUND));
}

TEST_F(FrontendTest, ReflectionCanBeTurnedOff) {
  // Field 7 of the request asks for the list of services.
  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  start();
  const auto [status, answer] = raw_call(method, std::string("\x3a\x01*"));
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(answer, HasSubstr("volley.v1.Inference"));
  server_->stop();
  start({}, false);
  EXPECT_EQ(raw_call(method, "").first.error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(FrontendTest, DrainFinishesWhatRunsRefusesWhatComesAndCutsWhatHangs) {
  FakeAttentionNode node([&](const auto&) {
    FakeAttentionNode::Script script = say("abcdef");
    script.pause = 50 * kMillisecond;
    return script;
  });
  FakeAttentionNode stuck([&](const auto&) { return say_and_hang("x"); });
  start();
  set_nodes({{"a0", node.port()}});
  grpc::ClientContext finishing;
  auto first = stub_->GenerateStream(&finishing, text_request());
  v1::GenerateChunk chunk;
  ASSERT_TRUE(first->Read(&chunk));
  set_nodes({{"a0", node.port()}, {"a1", stuck.port()}});
  grpc::ClientContext hanging;
  auto second = stub_->GenerateStream(&hanging, text_request());
  ASSERT_TRUE(second->Read(&chunk));
  EXPECT_EQ(chunk.attention_node(), "a1");

  std::thread drain([&] { server_->drain(kSecond); });
  ASSERT_TRUE(eventually([&] { return !inference_->not_serving_reason().empty(); }));
  const StreamResult late = stream(text_request());
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(late.status.error_message(), "the frontend is shutting down");
  EXPECT_EQ(health("volley.v1.Inference"), 2);
  while (first->Read(&chunk)) {
  }
  EXPECT_TRUE(first->Finish().ok());
  while (second->Read(&chunk)) {
  }
  EXPECT_EQ(second->Finish().error_message(), "the frontend is shutting down");
  drain.join();
  EXPECT_TRUE(inference_->wait_idle(0));
}

TEST(FrontendServer, RefusesWhereItMustNotListen) {
  InferenceService inference({}, test_model(), {}, std::shared_ptr(test_tokenizer()));
  const auto start = [&](const std::vector<std::string>& listen) {
    return FrontendServer::start({.listen = listen, .security = {}}, inference, {}).status();
  };
  EXPECT_EQ(message_of(start({"0.0.0.0:0"})), "refusing to listen on 0.0.0.0:0 without TLS");
  EXPECT_EQ(start({}).code(), StatusCode::kInvalidArgument);
  const auto server =
      FrontendServer::start({.listen = {"127.0.0.1:0"}, .security = {}}, inference, {});
  ASSERT_TRUE(server.ok());
  EXPECT_EQ(start({(*server)->addresses()[0]}).code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace volley::frontend
