// Goal: no port is opened in plain text where other machines reach it.
// Method: a table of addresses.

#include "volley/control/credentials.h"

#include <gtest/gtest.h>

namespace volley::control {
namespace {

TEST(Credentials, OnlyThisMachineIsServedInPlainText) {
  for (const char* address : {"127.0.0.1:0", "127.8.9.1:7000", "localhost:7000", "[::1]:7000",
                              "unix:/tmp/volley.sock", "unix-abstract:volley"}) {
    EXPECT_TRUE(make_server_credentials({}, address).ok()) << address;
  }
  for (const char* address :
       {"0.0.0.0:7000", "[::]:7000", "10.0.0.1:7000", "example.org:7000", "localhost.example.org:1",
        "127.0.0.1.example.org:1", "128.0.0.1:1"}) {
    const auto credentials = make_server_credentials({}, address);
    EXPECT_EQ(credentials.status().code(), StatusCode::kFailedPrecondition) << address;
    EXPECT_EQ(message_of(credentials.status()),
              std::string("refusing to listen on ") + address + " without TLS");
  }
  for (const char* address : {"", "7000", ":7000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536",
                              "127.0.0.1:70x", "::1:7000", "[::1:7000", "dns:///localhost:1"}) {
    EXPECT_EQ(make_server_credentials({}, address).status().code(), StatusCode::kInvalidArgument)
        << address;
  }
}

}  // namespace
}  // namespace volley::control
