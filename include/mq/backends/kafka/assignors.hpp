/// @file assignors.hpp
/// How the members of a group share out the partitions. Knows nothing of the client library.
#pragma once

#include <string_view>

namespace mq::kafka {

/// Hands over single partitions while the others are read on.
inline constexpr std::string_view kCooperative = "cooperative-sticky";
/// Every member gives all its partitions back before they are shared out anew. Both are named, so that
/// members which know only one of them can be in the same group; the first one spreads topics of few
/// partitions over all members.
inline constexpr std::string_view kEager = "roundrobin,range";

/// Whether a librdkafka of this version (rd_kafka_version()) may be given the cooperative assignor.
/// Before 2.6.1 it can compute for ever where members of one group have different topics: the
/// processor is burned, and the member is lost with its partitions (its issue 4783).
constexpr bool CooperativeIsSound(int version) {
    constexpr int kMended = 0x020601ff;
    return version >= kMended;
}

/// The value of partition.assignment.strategy where the options name none.
constexpr std::string_view PreferredAssignors(int version) {
    return CooperativeIsSound(version) ? kCooperative : kEager;
}

/// What is left to try in a group whose members do not know the preferred ones. One member cannot know
/// both: librdkafka refuses to mix them.
constexpr std::string_view OtherAssignors(std::string_view assignors) {
    return assignors == kCooperative ? kEager : kCooperative;
}

/// Whether a value of partition.assignment.strategy names the cooperative assignor.
constexpr bool NamesCooperative(std::string_view assignors) {
    return assignors.find(kCooperative) != std::string_view::npos;
}

}  // namespace mq::kafka
