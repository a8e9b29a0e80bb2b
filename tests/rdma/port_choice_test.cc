// Goal: the port that an operator means is the one that is used, and a wrong selector is told what
// there is. Method: descriptions of ports by hand; no device is opened.

#include <gtest/gtest.h>

#include "volley/rdma/device.h"

namespace volley::rdma {
namespace {

std::array<uint8_t, 16> mapped(uint8_t last) {
  return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last};
}
std::array<uint8_t, 16> global(uint8_t last) {
  return {0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last};
}
constexpr std::array<uint8_t, 16> kLinkLocal = {0xfe, 0x80, 0, 0, 0, 0, 0, 0,
                                                0,    0,    0, 0, 0, 0, 0, 1};

PortDescription roce(const std::string& device, uint8_t last, const std::string& pci_path) {
  return {.device = device,
          .port = 1,
          .link_layer = LinkLayer::kEthernet,
          .active = true,
          .state = "PORT_ACTIVE",
          .pci_path = pci_path,
          .gids = {{0, GidType::kRoceV1, kLinkLocal},
                   {1, GidType::kRoceV2, kLinkLocal},
                   {2, GidType::kRoceV1, mapped(last)},
                   {3, GidType::kRoceV2, mapped(last)},
                   {4, GidType::kRoceV2, global(last)}}};
}

std::vector<PortDescription> ports() {
  std::vector<PortDescription> out = {
      roce("mlx5_0", 1, "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0"),
      roce("mlx5_1", 2, "/sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0/0000:82:00.0"),
      roce("mlx5_2", 3, "/sys/devices/pci0000:80/0000:80:02.0/0000:91:00.0")};
  PortDescription second = roce("mlx5_2", 4, out[2].pci_path);
  second.port = 2;
  second.active = false;
  second.state = "PORT_DOWN";
  out.push_back(second);
  return out;
}

TEST(ChoosePort, TakesTheFirstActiveOneAndRoceV2OverIpv4) {
  const auto choice = choose_port(ports(), {}, "");
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->device, "mlx5_0");
  EXPECT_EQ(choice->port, 1);
  EXPECT_EQ(choice->gid_index, 3);
}

TEST(ChoosePort, PrefersIpv6OverLinkLocalAndV2OverV1) {
  std::vector<PortDescription> one = {ports()[0]};
  one[0].gids.erase(one[0].gids.begin() + 3);
  EXPECT_EQ(choose_port(one, {}, "")->gid_index, 4);
  one[0].gids.pop_back();
  EXPECT_EQ(choose_port(one, {}, "")->gid_index, 1);
  one[0].gids.erase(one[0].gids.begin() + 1);
  EXPECT_EQ(choose_port(one, {}, "")->gid_index, 0);
}

TEST(ChoosePort, TakesTheLowestIndexOnInfiniBand) {
  PortDescription port{
      .device = "mlx4_0",
      .port = 2,
      .link_layer = LinkLayer::kInfiniBand,
      .active = true,
      .state = "PORT_ACTIVE",
      .pci_path = {},
      .gids = {{1, GidType::kInfiniBand, global(8)}, {0, GidType::kInfiniBand, global(7)}}};
  const auto choice = choose_port({port}, {}, "");
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(choice->port, 2);
  EXPECT_EQ(choice->gid_index, 0);
}

TEST(ChoosePort, ByNameIpAndGidIndex) {
  EXPECT_EQ(choose_port(ports(), {.device = "mlx5_1", .ip = {}, .near = {}}, "")->device, "mlx5_1");
  EXPECT_EQ(choose_port(ports(), {.device = "mlx5_2:1", .ip = {}, .near = {}}, "")->device,
            "mlx5_2");
  const auto by_ip = choose_port(ports(), {.device = {}, .ip = "10.0.0.3", .near = {}}, "");
  ASSERT_TRUE(by_ip.ok()) << by_ip.status();
  EXPECT_EQ(by_ip->device, "mlx5_2");
  EXPECT_EQ(by_ip->gid_index, 3);
  EXPECT_EQ(choose_port(ports(), {.device = {}, .ip = "fd00::2", .near = {}}, "")->device,
            "mlx5_1");
  EXPECT_EQ(
      choose_port(ports(), {.device = {}, .ip = {}, .near = {}, .gid_index = 1}, "")->gid_index, 1);
}

TEST(ChoosePort, NearAGpu) {
  const std::string gpu = "/sys/devices/pci0000:80/0000:80:02.0/0000:92:00.0";
  EXPECT_EQ(choose_port(ports(), {}, gpu)->device, "mlx5_2");
  EXPECT_EQ(choose_port(ports(), {.device = "mlx5_1", .ip = {}, .near = {}}, gpu)->device,
            "mlx5_1");
  EXPECT_EQ(pci_distance(gpu, gpu), 0);
  EXPECT_EQ(pci_distance(ports()[2].pci_path, gpu), 2);
  EXPECT_LT(pci_distance(ports()[1].pci_path, gpu), pci_distance(ports()[0].pci_path, gpu));
}

TEST(ChoosePort, SaysWhatIsWrongAndWhatThereIs) {
  struct Case {
    PortSelector selector;
    StatusCode code;
    const char* words;
  };
  const Case cases[] = {
      {{.device = "mlx5_9", .ip = {}, .near = {}},
       StatusCode::kNotFound,
       "device 'mlx5_9'; there are mlx5_0:1"},
      {{.device = "mlx5_0:0", .ip = {}, .near = {}},
       StatusCode::kInvalidArgument,
       "'mlx5_0:0', allowed: NAME"},
      {{.device = "mlx5_0:x", .ip = {}, .near = {}}, StatusCode::kInvalidArgument, "'mlx5_0:x'"},
      {{.device = {}, .ip = "10.0.0.9", .near = {}}, StatusCode::kNotFound, "ip '10.0.0.9'"},
      {{.device = {}, .ip = "ten", .near = {}}, StatusCode::kInvalidArgument, "ip is 'ten'"},
      {{.device = {}, .ip = {}, .near = {}, .gid_index = 77},
       StatusCode::kNotFound,
       "gid_index 77"},
      {{.device = "mlx5_2:2", .ip = {}, .near = {}},
       StatusCode::kFailedPrecondition,
       "mlx5_2:2 is in state PORT_DOWN"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.words);
    const auto choice = choose_port(ports(), c.selector, "");
    EXPECT_EQ(choice.status().code(), c.code);
    EXPECT_NE(message_of(choice.status()).find(c.words), std::string::npos) << choice.status();
  }
  const auto none = choose_port({}, {}, "");
  EXPECT_EQ(none.status().code(), StatusCode::kNotFound);
  EXPECT_NE(message_of(none.status()).find("there is no RDMA device"), std::string::npos);
}

}  // namespace
}  // namespace volley::rdma
